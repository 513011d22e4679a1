// Arrays of Python as the kernels see them: kind, shape and contiguity are checked, then they are pointers.
// Errors are one line, TypeError for a wrong kind, ValueError for wrong numbers.
#pragma once
#include <nanobind/nanobind.h>

#include <initializer_list>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "in_turn.h"
#include "kernels.h"

namespace bise {

namespace nb = nanobind;

[[noreturn]] inline void refuse(const std::string& message) { throw nb::value_error(message.c_str()); }
inline void require(bool right, const char* message) {
    if (!right) refuse(message);
}

// A C-contiguous array held for the length of a call.
class Array {
  public:
    // format: one character of Python's struct module (f float32, e float16, b int8, B uint8, i int32)
    Array(nb::handle object, const char* name, char format, bool writable = false) : name_(name) {
        const int flags = PyBUF_ND | PyBUF_FORMAT | PyBUF_C_CONTIGUOUS | (writable ? PyBUF_WRITABLE : 0);
        if (PyObject_GetBuffer(object.ptr(), &view_, flags)) {
            PyErr_Clear();
            const bool array = PyObject_CheckBuffer(object.ptr());
            const std::string want =
                std::string(name) +
                (array ? writable ? " must be contiguous and writable" : " must be contiguous" : " must be an array");
            if (array) refuse(want);
            throw nb::type_error(want.c_str());
        }
        if (!view_.format || view_.format[0] != format || view_.format[1]) {
            const std::string got = view_.format ? view_.format : "bytes";
            PyBuffer_Release(&view_);
            throw nb::type_error((std::string(name) + " has items of kind '" + got + "', expected '" + format + "'").c_str());
        }
    }
    Array(const Array&) = delete;
    ~Array() { PyBuffer_Release(&view_); }

    // the sizes must be these; -1 stands for any
    void shape(std::initializer_list<i64> sizes) const {
        bool right = view_.ndim == static_cast<int>(sizes.size());
        int axis = 0;
        for (i64 size : sizes) {
            if (!right) break;
            right = size == -1 || view_.shape[axis] == size;
            axis++;
        }
        if (right) return;
        const auto join = [](const auto* begin, const auto* end) {
            std::string s = "(";
            for (auto* p = begin; p != end; p++)
                s += (p == begin ? "" : ", ") + (*p == -1 ? std::string("any") : std::to_string(*p));
            return s + ")";
        };
        refuse(name_ + " has shape " + join(view_.shape, view_.shape + view_.ndim) + ", expected " +
               join(sizes.begin(), sizes.end()));
    }
    i64 size(int axis) const {
        if (axis >= view_.ndim)
            refuse(name_ + " has " + std::to_string(view_.ndim) + " axes, expected at least " + std::to_string(axis + 1));
        return view_.shape[axis];
    }
    template <class X>
    X* as() const {
        return static_cast<X*>(view_.buf);
    }

  private:
    Py_buffer view_{};
    std::string name_;
};

// Weights that have their columns in common with x (T, cols), and beside each an array (T, rows); X is float, or const float
// where it is only read. As many of these as weights.
template <class X>
struct Beside {
    std::vector<const Matrix*> weights;
    std::vector<X*> values;
    Beside(const Array& x, const nb::tuple& ws, const nb::tuple& arrays, const char* name) {
        const i64 T = x.size(0);
        for (size_t i = 0; i < ws.size(); i++) {
            const auto* w = nb::cast<const Matrix*>(ws[i]);
            require(w != nullptr, "a weight is None");
            x.shape({T, w->cols});
            held_.push_back(std::make_unique<Array>(arrays[i], name, 'f', !std::is_const_v<X>));
            held_.back()->shape({T, w->rows});
            weights.push_back(w), values.push_back(held_.back()->template as<X>());
        }
    }

  private:
    std::vector<std::unique_ptr<Array>> held_;
};

// A ring's arrays, checked against each other.
struct RingArrays {
    Array k, v;
    std::unique_ptr<Array> k_scale, v_scale;
    RingView view;
    RingArrays(nb::handle ks, nb::handle vs, nb::handle k_scales, nb::handle v_scales, bool writable)
        : k(ks, "ring.k", kind(ks, k_scales), writable), v(vs, "ring.v", kind(ks, k_scales), writable) {
        const char format = kind(ks, k_scales);
        const i64 S = k.size(0), G = k.size(1), N = k.size(2), D = k.size(3);
        k.shape({S, G, N, D});
        v.shape({S, G, N, D});
        require(S > 0 && G > 0 && N > 0 && D > 0, "a ring has an empty axis");
        if (N % kKeys) refuse("ring size is " + std::to_string(N) + ", expected a multiple of " + std::to_string(kKeys));
        view = {format == 'f' ? Kv::F32 : format == 'e' ? Kv::F16 : Kv::Q8_0,
                S,
                G,
                N,
                D,
                k.as<void>(),
                v.as<void>(),
                nullptr,
                nullptr};
        if (view.kv != Kv::Q8_0) return;
        if (D % 32) refuse("head_dim is " + std::to_string(D) + ", q8_0 needs a multiple of 32");
        k_scale = std::make_unique<Array>(k_scales, "ring.k_scale", 'e', writable);
        v_scale = std::make_unique<Array>(v_scales, "ring.v_scale", 'e', writable);
        k_scale->shape({S, G, N, D / 32});
        v_scale->shape({S, G, N, D / 32});
        view.k_scale = k_scale->as<uint16_t>(), view.v_scale = v_scale->as<uint16_t>();
    }

  private:
    static char kind(nb::handle values, nb::handle scales) {
        if (!scales.is_none()) return 'b';
        Py_buffer probe;
        if (PyObject_GetBuffer(values.ptr(), &probe, PyBUF_ND | PyBUF_FORMAT)) {
            PyErr_Clear();
            throw nb::type_error("ring.k must be a contiguous array");
        }
        const char format = probe.format && probe.format[0] == 'e' ? 'e' : 'f';
        PyBuffer_Release(&probe);
        return format;
    }
};

// A matrix whose columns are rounded in turn, and what goes with it.
struct ColumnArrays {
    Array feedback, w, zero, step, pull, error, levels;
    i64 rows, cols;
    ColumnArrays(nb::handle fs, nb::handle ws, nb::handle zeros, nb::handle steps, nb::handle pulls, nb::handle errors,
                 nb::handle ls)
        : feedback(fs, "feedback", 'f'),
          w(ws, "w", 'f'),
          zero(zeros, "zero", 'f'),
          step(steps, "step", 'f'),
          pull(pulls, "pull", 'f', true),
          error(errors, "error", 'f', true),
          levels(ls, "levels", 'b', true),
          rows(w.size(0)),
          cols(w.size(1)) {
        feedback.shape({cols, cols});
        for (const Array* a : {&w, &zero, &step, &pull, &error, &levels}) a->shape({rows, cols});
        if (cols < 32 || cols % 32) refuse("w has " + std::to_string(cols) + " columns, expected a multiple of 32");
    }
    Columns columns(Type type, i64 at, i64 n) const {
        if (at < 0 || n < 32 || n % 32 || n > kColumns || at > cols - n)
            refuse("columns " + std::to_string(at) + " to " + std::to_string(at + n) + " of " + std::to_string(cols) +
                   ": expected blocks of 32, at most " + std::to_string(kColumns));
        return {type,
                cols,
                at,
                n,
                feedback.as<float>(),
                w.as<float>(),
                zero.as<float>(),
                step.as<float>(),
                pull.as<float>(),
                error.as<float>(),
                levels.as<int8_t>()};
    }
};

// Spans within T rows and S sequences; positions not negative and small enough to count on.
inline void check_spans(const Array& spans, i64 T, i64 S) {
    spans.shape({-1, 4});
    for (const Span *s = spans.as<Span>(), *end = s + spans.size(0); s < end; s++) {
        const bool right = 0 <= s->sequence && s->sequence < S && 0 <= s->row && 0 < s->count && i64{s->row} + s->count <= T &&
                           0 <= s->position && i64{s->position} + s->count < (i64{1} << 31);
        if (!right) {
            refuse("span (" + std::to_string(s->sequence) + ", " + std::to_string(s->row) + ", " + std::to_string(s->count) +
                   ", " + std::to_string(s->position) + ") does not fit " + std::to_string(T) + " rows and " + std::to_string(S) +
                   " sequences");
        }
    }
}

}  // namespace bise
