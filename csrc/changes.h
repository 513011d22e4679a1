// What adapters change in the outputs of one `linear`, as Python says it, checked.
#pragma once
#include "arrays.h"
#include "run.h"

namespace bise {

// ys: the outputs; groups (n, 2): rows [first, end) of each group of rows, ascending; pairs: for each group and output a tuple
// (A, B, factor), or None where nothing changes. Everything has to outlive this.
class Changes {
  public:
    Changes(const Array& x, nb::tuple ys, const Array& groups, nb::tuple pairs) : x_(x) {
        groups.shape({static_cast<i64>(pairs.size()), 2});
        for (nb::handle y : ys) ys_.push_back(std::make_unique<Array>(y, "y", 'f', true)), ys_.back()->shape({x.size(0), -1});
        i64 last = 0;
        for (size_t i = 0; i < pairs.size(); i++) {
            const i64 first = groups.as<int32_t>()[2 * i], end = groups.as<int32_t>()[2 * i + 1];
            if (first < last || end < first || end > x.size(0))
                refuse("rows " + std::to_string(first) + " to " + std::to_string(end) + " do not follow " + std::to_string(last) +
                       " within " + std::to_string(x.size(0)));
            last = end;
            const nb::tuple group = tuple(pairs[i], ys_.size());
            for (size_t j = 0; j < ys_.size(); j++)
                if (!group[j].is_none()) add(*ys_[j], tuple(group[j], 3), first, end);
        }
    }
    const std::vector<Change>& all() const { return all_; }

  private:
    static bool good(const Matrix* w) { return w && w->packed && is_float(w->type); }
    static nb::tuple tuple(nb::handle object, size_t size) {
        if (!PyTuple_Check(object.ptr()) || nb::len(object) != size)
            throw nb::type_error(("pairs want a tuple of " + std::to_string(size) + " here").c_str());
        return nb::borrow<nb::tuple>(object);
    }
    void add(const Array& y, const nb::tuple& pair, i64 first, i64 end) {
        const Matrix *a = nullptr, *b = nullptr;
        require(nb::try_cast(pair[0], a) && nb::try_cast(pair[1], b) && good(a) && good(b),
                "A and B have to be packed matrices of floats");
        x_.shape({-1, a->cols}), y.shape({-1, b->rows});
        if (a->rows != b->cols)
            refuse("A has rank " + std::to_string(a->rows) + ", B " + std::to_string(b->cols) + ": they have to agree");
        const float* factor = nullptr;
        if (!pair[2].is_none()) {
            factors_.push_back(std::make_unique<Array>(pair[2], "factor", 'f'));
            factors_.back()->shape({b->rows});
            factor = factors_.back()->as<float>();
        }
        if (first < end) all_.push_back({a, b, factor, first, end, y.as<float>()});
    }
    const Array& x_;
    std::vector<std::unique_ptr<Array>> ys_, factors_;
    std::vector<Change> all_;
};

}  // namespace bise
