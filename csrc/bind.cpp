// The door from Python: every array is checked (arrays.h) and their sizes against each other, then a kernel runs with the GIL
// released. No arithmetic.
#include <nanobind/stl/string.h>

#include "arrays.h"
#include "changes.h"
#include "checksum.h"
#include "pack.h"
#include "round.h"
#include "run.h"

namespace nb = nanobind;
using namespace bise;

namespace {

constexpr const char* kTypeNames[kTypes] = {"F32",    "F16",  "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0",  "Q5_1",
                                            "IQ4_NL", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"};

Type type_of(const std::string& name) {
    for (int i = 0; i < kTypes; i++)
        if (name == kTypeNames[i]) return Type(i);
    refuse("no kernel for type '" + name + "'");
}

const Kernels& choose(const std::string& isa) {
    std::string known;
    for (const Kernels* k : kernels_here()) {
        if (isa.empty() || isa == k->name) return *k;
        known += std::string(known.empty() ? "" : ", ") + k->name;
    }
    refuse("instruction set '" + isa + "' does not run here, these do: " + known);
}

// One instruction set over one pool: the verbs.
class Verbs {
  public:
    Verbs(int threads, const std::string& isa) : kernels_(choose(isa)) {
        if (threads < 1 || threads > 1024) refuse("threads is " + std::to_string(threads) + ", expected 1 to 1024");
        pool_ = Pool::shared(threads);
    }
    const char* isa() const { return kernels_.name; }
    int threads() const { return pool_->threads(); }

    Matrix* pack(const std::string& name, nb::handle bytes, i64 rows, i64 cols) const {
        const Type type = type_of(name);
        const Array data(bytes, "data", 'B');
        const i64 block = block_columns(type), row = check_sizes(name, rows, cols, block, row_bytes(type, block));
        data.shape({rows * row});
        i64 sick;
        auto w = std::make_unique<Matrix>(sized(type, rows, cols));
        {
            nb::gil_scoped_release free;
            w->data = Buffer(static_cast<size_t>(w->panels * w->panel_bytes()));
            sick = bise::pack(*pool_, data.as<uint8_t>(), *w);
        }
        if (sick != kSound)
            refuse("row " + std::to_string(sick) + " holds a NaN or infinite " + (block == 1 ? "value" : "scale"));
        return w.release();
    }

    // Panels that `pack` made once, where they lie: the matrix keeps `bytes` alive and copies nothing.
    Matrix* adopt(const std::string& name, nb::handle bytes, i64 rows, i64 cols) const {
        const Type type = type_of(name);
        auto data = std::make_unique<Array>(bytes, "panels", 'B');
        const i64 block = block_columns(type);
        check_sizes(name, rows, cols, block, row_bytes(type, block));
        auto w = std::make_unique<Matrix>(sized(type, rows, cols));
        data->shape({w->panels * w->panel_bytes()});
        require(reinterpret_cast<uintptr_t>(data->as<void>()) % 64 == 0, "panels must be aligned to 64 bytes");
        w->data = view(std::move(data));
        return w.release();
    }

    // Rows as the file has them, which the matrix keeps alive, of a quantised type.
    Matrix* keep(const std::string& name, nb::handle bytes, i64 rows, i64 cols) const {
        const Type type = type_of(name);
        auto data = std::make_unique<Array>(bytes, "data", 'B');
        if (is_float(type)) refuse("keep takes quantised types, not " + name);
        const i64 block = block_columns(type), row = check_sizes(name, rows, cols, block, row_bytes(type, block));
        data->shape({rows * row});
        auto w = std::make_unique<Matrix>(sized(type, rows, cols));
        w->packed = false;
        w->data = view(std::move(data));
        return w.release();
    }

    uint64_t checksum(nb::handle bytes) const {
        const Array data(bytes, "data", 'B');
        data.shape({-1});
        nb::gil_scoped_release free;
        return bise::checksum(*pool_, data.as<uint8_t>(), data.size(0));
    }

    void embed(const std::string& name, nb::handle bytes, i64 rows, i64 cols, nb::handle ids, nb::handle out) const {
        const Type type = type_of(name);
        const Array data(bytes, "table", 'B'), tokens(ids, "tokens", 'i'), y(out, "out", 'f', true);
        const i64 block = block_columns(type), row = check_sizes(name, rows, cols, block, row_bytes(type, block));
        data.shape({rows * row});
        tokens.shape({-1});
        y.shape({tokens.size(0), cols});
        for (i64 i = 0; i < tokens.size(0); i++) {
            const int32_t id = tokens.as<int32_t>()[i];
            if (id < 0 || id >= rows)
                refuse("token " + std::to_string(id) + " is not in the vocabulary of " + std::to_string(rows));
        }
        nb::gil_scoped_release free;
        for (i64 i = 0; i < tokens.size(0); i++) {
            kernels_.dequantise(type, data.as<uint8_t>() + tokens.as<int32_t>()[i] * row, cols, y.as<float>() + i * cols);
        }
    }

    void dequantise(const std::string& name, nb::handle bytes, nb::handle out) const {
        const Type type = type_of(name);
        const Array data(bytes, "data", 'B'), y(out, "out", 'f', true);
        const i64 rows = y.size(0), cols = y.size(1), block = block_columns(type);
        y.shape({rows, cols});
        data.shape({rows * check_sizes(name, rows, cols, block, row_bytes(type, block))});
        nb::gil_scoped_release free;
        bise::dequantise(kernels_, *pool_, type, data.as<uint8_t>(), rows, cols, y.as<float>());
    }

    void look_up(nb::handle numbers, nb::handle codes, nb::handle largest, nb::handle out) const {
        const Array levels(numbers, "levels", 'f'), p(codes, "codes", 'B'), scales(largest, "scales", 'f'),
            y(out, "out", 'f', true);
        const i64 blocks = scales.size(0), cols = y.size(1);
        if (cols < 64 || cols % 64) refuse("out has " + std::to_string(cols) + " columns, expected a multiple of 64");
        levels.shape({16}), scales.shape({blocks}), p.shape({32 * blocks}), y.shape({blocks / (cols / 64), cols});
        require(blocks % (cols / 64) == 0, "scales are not one for each block of 64");
        nb::gil_scoped_release free;
        bise::look_up(kernels_, *pool_, levels.as<float>(), p.as<uint8_t>(), scales.as<float>(), blocks, y.as<float>());
    }

    void linear(nb::handle input, nb::tuple weights, nb::tuple outs) const {
        const Array x(input, "x", 'f');
        require(weights.size() == outs.size(), "linear needs one output for each weight");
        const Beside<float> ys(x, weights, outs, "out");
        nb::gil_scoped_release free;
        bise::linear(kernels_, *pool_, x.as<float>(), x.size(0), ys.weights, ys.values);
    }

    void adapt(nb::handle input, nb::tuple ys, nb::handle rows, nb::tuple pairs) const {
        const Array x(input, "x", 'f'), groups(rows, "rows", 'i');
        x.shape({-1, -1});
        const Changes changes(x, ys, groups, pairs);
        nb::gil_scoped_release free;
        bise::adapt(kernels_, *pool_, x.as<float>(), changes.all());
    }

    void linear_back(nb::tuple changes, nb::tuple weights, nb::handle out) const {
        const Array dx(out, "dx", 'f', true);
        require(weights.size() == changes.size(), "linear_back needs one dy for each weight");
        const Beside<const float> dys(dx, weights, changes, "dy");
        for (const Matrix* w : dys.weights) require(!w->packed, "linear_back takes weights that `keep` made");
        nb::gil_scoped_release free;
        bise::linear_back(kernels_, *pool_, dys.values, dx.size(0), dys.weights, dx.as<float>());
    }

    void rms_norm(nb::handle input, nb::handle weight, float eps, nb::handle out) const {
        const Array x(input, "x", 'f'), w(weight, "w", 'f'), y(out, "out", 'f', true);
        const i64 T = x.size(0), n = x.size(1);
        x.shape({T, n}), w.shape({n}), y.shape({T, n});
        nb::gil_scoped_release free;
        bise::rms_norm(kernels_, *pool_, x.as<float>(), w.as<float>(), eps, T, n, y.as<float>());
    }

    void rope(nb::handle input, nb::handle cosine, nb::handle sine) const {
        const Array x(input, "x", 'f', true), cos(cosine, "cos", 'f'), sin(sine, "sin", 'f');
        const i64 T = x.size(0), n = x.size(1), half = cos.size(1);
        x.shape({T, n}), cos.shape({T, half}), sin.shape({T, half});
        if (half < 1 || n % (2 * half))
            refuse("x has " + std::to_string(n) + " columns, not a multiple of " + std::to_string(2 * half));
        nb::gil_scoped_release free;
        bise::rope(kernels_, *pool_, x.as<float>(), cos.as<float>(), sin.as<float>(), T, n / (2 * half), half);
    }

    void rms_norm_back(nb::handle input, nb::handle weight, float eps, nb::handle change, nb::handle out) const {
        const Array x(input, "x", 'f'), w(weight, "w", 'f'), dy(change, "dy", 'f'), dx(out, "dx", 'f', true);
        const i64 T = x.size(0), n = x.size(1);
        x.shape({T, n}), w.shape({n}), dy.shape({T, n}), dx.shape({T, n});
        nb::gil_scoped_release free;
        bise::rms_norm_back(kernels_, *pool_, x.as<float>(), w.as<float>(), eps, T, n, dy.as<float>(), dx.as<float>());
    }

    void swiglu(nb::handle gates, nb::handle ups, nb::handle out) const {
        const Array gate(gates, "gate", 'f'), up(ups, "up", 'f'), y(out, "out", 'f', true);
        const i64 T = gate.size(0), n = gate.size(1);
        gate.shape({T, n}), up.shape({T, n}), y.shape({T, n});
        nb::gil_scoped_release free;
        bise::swiglu(kernels_, *pool_, gate.as<float>(), up.as<float>(), T * n, y.as<float>());
    }

    void swiglu_back(nb::handle gates, nb::handle ups, nb::handle change, nb::handle gates_out, nb::handle ups_out) const {
        const Array gate(gates, "gate", 'f'), up(ups, "up", 'f'), dy(change, "dy", 'f');
        const Array dgate(gates_out, "dgate", 'f', true), dup(ups_out, "dup", 'f', true);
        const i64 T = gate.size(0), n = gate.size(1);
        for (const Array* a : {&gate, &up, &dy, &dgate, &dup}) a->shape({T, n});
        nb::gil_scoped_release free;
        bise::swiglu_back(kernels_, *pool_, gate.as<float>(), up.as<float>(), dy.as<float>(), T * n, dgate.as<float>(),
                          dup.as<float>());
    }

    void store(nb::handle rk, nb::handle rv, nb::handle rks, nb::handle rvs, nb::handle where, nb::handle ks,
               nb::handle vs) const {
        const RingArrays ring(rk, rv, rks, rvs, true);
        const Array spans(where, "spans", 'i'), k(ks, "k", 'f'), v(vs, "v", 'f');
        const i64 T = k.size(0), n = ring.view.G * ring.view.D;
        k.shape({T, n}), v.shape({T, n});
        check_spans(spans, T, ring.view.S);
        for (const Span *s = spans.as<Span>(), *end = s + spans.size(0); s < end; s++) {
            if (s->count > ring.view.N)
                refuse(std::to_string(s->count) + " tokens do not fit a ring of " + std::to_string(ring.view.N));
        }
        nb::gil_scoped_release free;
        bise::store(kernels_, *pool_, ring.view, spans.as<Span>(), spans.size(0), k.as<float>(), v.as<float>());
    }

    void attend(nb::handle qs, nb::handle rk, nb::handle rv, nb::handle rks, nb::handle rvs, nb::handle where, nb::object window,
                nb::handle out) const {
        const RingArrays ring(rk, rv, rks, rvs, false);
        const Array q(qs, "q", 'f'), spans(where, "spans", 'i'), y(out, "out", 'f', true);
        const i64 T = q.size(0), n = q.size(1), N = ring.view.N, group = ring.view.G * ring.view.D;
        q.shape({T, n}), y.shape({T, n});
        if (n == 0 || n % group)
            refuse("q has " + std::to_string(n) + " columns, not a multiple of G * D = " + std::to_string(group));
        const i64 seen = window.is_none() ? i64{1} << 40 : nb::cast<i64>(window);
        require(seen >= 1, "window must be at least 1");
        check_spans(spans, T, ring.view.S);
        for (const Span *s = spans.as<Span>(), *end = s + spans.size(0); s < end; s++) {
            const i64 oldest = std::max<i64>(0, s->position - seen + 1), live = i64{s->position} + s->count - oldest;
            if (live > N) refuse("attend needs " + std::to_string(live) + " live slots, the ring has " + std::to_string(N));
        }
        nb::gil_scoped_release free;
        bise::attend(kernels_, *pool_, ring.view, spans.as<Span>(), spans.size(0), n / ring.view.D, seen, q.as<float>(),
                     y.as<float>());
    }

    // -> the first row that holds a NaN, or a value beyond the 65504 of float16; or -1
    i64 quantise(const std::string& name, nb::handle values, nb::handle importance, nb::handle out) const {
        const Type type = type_of(name);
        if (!rounds(type)) refuse("quantise does not make type '" + name + "'");
        const Array x(values, "values", 'f'), y(out, "out", 'B', true);
        const i64 rows = x.size(0), cols = x.size(1), block = rounded_columns(type);
        x.shape({rows, cols});
        check_sizes(name, rows, cols, block, 1);
        y.shape({rows * row_bytes(type, cols)});
        std::unique_ptr<Array> weights;
        if (!importance.is_none()) {
            weights = std::make_unique<Array>(importance, "importance", 'f');
            weights->shape({cols});
        }
        nb::gil_scoped_release free;
        return bise::round_rows(kernels_, *pool_, type, x.as<float>(), rows, cols, weights ? weights->as<float>() : nullptr,
                                y.as<uint8_t>());
    }

    // columns [at, at + n), rounded in turn
    void in_turn(const std::string& name, nb::handle feedback, i64 at, i64 n, nb::handle w, nb::handle zero, nb::handle step,
                 nb::handle pull, nb::handle error, nb::handle levels) const {
        const ColumnArrays arrays(feedback, w, zero, step, pull, error, levels);
        const Columns columns = arrays.columns(columns_type(name), at, n);
        nb::gil_scoped_release free;
        bise::in_turn(kernels_, *pool_, columns, arrays.rows);
    }

    void sweep(const std::string& name, nb::handle feedback, nb::handle w, nb::handle zero, nb::handle step, nb::handle pull,
               nb::handle error, nb::handle levels) const {
        const ColumnArrays arrays(feedback, w, zero, step, pull, error, levels);
        const Columns columns = arrays.columns(columns_type(name), 0, 32);
        nb::gil_scoped_release free;
        bise::sweep(kernels_, *pool_, columns, arrays.rows, arrays.pull.as<float>());
    }

  private:
    static Buffer view(std::unique_ptr<Array> array) {
        const uint8_t* begin = array->as<uint8_t>();
        const size_t size = static_cast<size_t>(array->size(0));
        return Buffer(begin, size, [](void* held) { delete static_cast<Array*>(held); }, array.release());
    }
    static Type columns_type(const std::string& name) {
        const Type type = type_of(name);
        if (!rounds(type)) refuse("type '" + name + "' has no levels");
        return type;
    }
    static Matrix sized(Type type, i64 rows, i64 cols) {
        return {type, rows, cols, (rows + kRows - 1) / kRows, (cols + kColumns - 1) / kColumns, rows, true, Buffer()};
    }
    // bytes of one row; refuses sizes whose product could not be held
    static i64 check_sizes(const std::string& name, i64 rows, i64 cols, i64 block, i64 bytes) {
        if (rows < 1 || cols < 1 || cols % block || rows >= (i64{1} << 31) || cols >= (i64{1} << 31)) {
            refuse("a " + name + " matrix of " + std::to_string(rows) + " x " + std::to_string(cols) +
                   ": expected columns in blocks of " + std::to_string(block) + " and both sizes from 1 to 2^31 - 1");
        }
        return cols / block * bytes;
    }
    const Kernels& kernels_;
    std::shared_ptr<Pool> pool_;
};

nb::tuple isas() {
    nb::list names;
    for (const Kernels* k : kernels_here()) names.append(nb::str(k->name));
    return nb::tuple(names);
}

}  // namespace

namespace {
// an array argument; None passes nanobind and is refused (or understood) by the verb
auto array(const char* name) { return nb::arg(name).none(); }

// memoryview(matrix): its panels, read-only; the view keeps the matrix
int view_panels(PyObject* self, Py_buffer* view, int flags) {
    const Buffer& data = nb::inst_ptr<Matrix>(nb::handle(self))->data;
    return PyBuffer_FillInfo(view, self, data.bytes(), static_cast<Py_ssize_t>(data.size()), 1, flags);
}
PyType_Slot matrix_slots[] = {{Py_bf_getbuffer, reinterpret_cast<void*>(view_panels)}, {0, nullptr}};
}  // namespace

NB_MODULE(_kernels, m) {
    m.doc() = "The CPU backend's kernels. bise.ops.cpu is their Python face.";
    nb::class_<Matrix>(m, "Matrix", nb::type_slots(matrix_slots), "A weight in panels of 16 rows, ready for `linear`.")
        .def_ro("rows", &Matrix::rows)
        .def_ro("cols", &Matrix::cols)
        .def_prop_ro("type", [](const Matrix& w) { return kTypeNames[static_cast<int>(w.type)]; })
        .def_prop_ro("nbytes", [](const Matrix& w) { return w.data.size(); });
    nb::class_<Verbs>(m, "Verbs", "The verbs of one instruction set over one pool of threads.")
        .def(nb::init<int, const std::string&>(), nb::arg("threads"), nb::arg("isa") = "")
        .def_prop_ro("isa", &Verbs::isa)
        .def_prop_ro("threads", &Verbs::threads)
        .def("pack", &Verbs::pack, nb::rv_policy::take_ownership, nb::arg("type"), array("data"), nb::arg("rows"),
             nb::arg("cols"))
        .def("adopt", &Verbs::adopt, nb::rv_policy::take_ownership, nb::arg("type"), array("panels"), nb::arg("rows"),
             nb::arg("cols"))
        .def("keep", &Verbs::keep, nb::rv_policy::take_ownership, nb::arg("type"), array("data"), nb::arg("rows"),
             nb::arg("cols"))
        .def("checksum", &Verbs::checksum, array("data"))
        .def("embed", &Verbs::embed, nb::arg("type"), array("table"), nb::arg("rows"), nb::arg("cols"), array("tokens"),
             array("out"))
        .def("quantise", &Verbs::quantise, nb::arg("type"), array("values"), array("importance"), array("out"))
        .def("in_turn", &Verbs::in_turn, nb::arg("type"), array("feedback"), nb::arg("at"), nb::arg("n"), array("w"),
             array("zero"), array("step"), array("pull"), array("error"), array("levels"))
        .def("sweep", &Verbs::sweep, nb::arg("type"), array("feedback"), array("w"), array("zero"), array("step"), array("pull"),
             array("error"), array("levels"))
        .def("dequantise", &Verbs::dequantise, nb::arg("type"), array("data"), array("out"))
        .def("look_up", &Verbs::look_up, array("levels"), array("codes"), array("scales"), array("out"))
        .def("linear", &Verbs::linear, array("x"), nb::arg("ws"), nb::arg("outs"))
        .def("adapt", &Verbs::adapt, array("x"), nb::arg("ys"), array("rows"), nb::arg("pairs"))
        .def("linear_back", &Verbs::linear_back, nb::arg("dys"), nb::arg("ws"), array("dx"))
        .def("rms_norm", &Verbs::rms_norm, array("x"), array("w"), nb::arg("eps"), array("out"))
        .def("rope", &Verbs::rope, array("x"), array("cos"), array("sin"))
        .def("swiglu", &Verbs::swiglu, array("gate"), array("up"), array("out"))
        .def("rms_norm_back", &Verbs::rms_norm_back, array("x"), array("w"), nb::arg("eps"), array("dy"), array("dx"))
        .def("swiglu_back", &Verbs::swiglu_back, array("gate"), array("up"), array("dy"), array("dgate"), array("dup"))
        .def("store", &Verbs::store, array("k"), array("v"), array("k_scale"), array("v_scale"), array("spans"), array("new_k"),
             array("new_v"))
        .def("attend", &Verbs::attend, array("q"), array("k"), array("v"), array("k_scale"), array("v_scale"), array("spans"),
             array("window"), array("out"));
    m.def("isas", &isas, "The instruction sets that run here, best first.");
    m.def("isa", [] { return kernels_here().front()->name; }, "The one that is chosen.");
}
