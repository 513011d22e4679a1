// N - 1 workers and the caller share the tasks of one call. Workers spin for a moment after a call, then sleep.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace bise {

class Pool {
  public:
    explicit Pool(int threads);
    ~Pool();
    int threads() const { return threads_; }

    // f(task, thread) for every task in [0, tasks), each taken by whoever is free; returns when all are done.
    // f must not throw. Safe to call from several threads (they take turns) and after a fork.
    template <class Fn>
    void run(int64_t tasks, const Fn& f) {
        if (threads_ == 1 || tasks <= 1 || tasks > kMostTasks) {
            for (int64_t i = 0; i < tasks; i++) f(i, 0);
            return;
        }
        run_(tasks, [](const void* fn, int64_t task, int thread) { (*static_cast<const Fn*>(fn))(task, thread); }, &f);
    }

    // The pool of that many threads, shared by all who ask while anybody holds it.
    static std::shared_ptr<Pool> shared(int threads);

  private:
    static constexpr int64_t kMostTasks = (1 << 20) - 1;
    using Call = void (*)(const void*, int64_t, int);
    struct State;
    void run_(int64_t tasks, Call call, const void* fn);
    int threads_;
    State* state_;  // lost on purpose in a forked child, where its threads do not exist
};

}  // namespace bise
