#include "pool.h"

#include <pthread.h>

#include <chrono>
#include <map>

namespace bise {
namespace {

std::atomic<int> forks{0};  // how many forks lie between the first process and this one

void watch_forks() {
    static const int once = pthread_atfork(nullptr, nullptr, [] { forks++; });
    (void)once;
}

inline void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Waits for x to differ from old: spins about 30 microseconds, then sleeps.
template <class X>
void wait_change(const std::atomic<X>& x, X old) {
    const auto until = std::chrono::steady_clock::now() + std::chrono::microseconds(30);
    do {
        for (int i = 0; i < 32; i++) {
            if (x.load(std::memory_order_acquire) != old) return;
            pause();
        }
    } while (std::chrono::steady_clock::now() < until);
    while (x.load(std::memory_order_acquire) == old) x.wait(old, std::memory_order_acquire);
}

}  // namespace

struct Pool::State {
    std::mutex turn;
    alignas(64) std::atomic<uint32_t> call{0};  // grows by one per call; workers wait for it
    alignas(64) std::atomic<int64_t> next{0};   // the next task to take
    alignas(64) std::atomic<int32_t> busy{0};   // workers still in this call
    int64_t tasks = 0;
    Call fn = nullptr;
    const void* data = nullptr;
    bool stop = false;
    const int born = forks;
    std::vector<std::thread> workers;

    explicit State(int threads) {
        for (int i = 1; i < threads; i++) workers.emplace_back([this, i] { work(i); });
    }
    ~State() {
        stop = true;
        call++;
        call.notify_all();
        for (auto& worker : workers) worker.join();
    }
    void take(int thread) {
        for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) fn(data, i, thread);
    }
    void work(int thread) {
        for (uint32_t seen = 0;; seen++) {
            wait_change(call, seen);
            if (stop) return;
            take(thread);
            if (busy.fetch_sub(1, std::memory_order_acq_rel) == 1) busy.notify_one();
        }
    }
};

Pool::Pool(int threads) : threads_(threads), state_((watch_forks(), new State(threads))) {}

Pool::~Pool() {
    if (state_->born == forks) delete state_;
}

void Pool::run_(int64_t tasks, Call call, const void* fn) {
    if (state_->born != forks) state_ = new State(threads_);
    State& s = *state_;
    const std::lock_guard<std::mutex> turn(s.turn);
    s.tasks = tasks, s.fn = call, s.data = fn;
    s.next.store(0, std::memory_order_relaxed);
    s.busy.store(threads_ - 1, std::memory_order_relaxed);
    s.call.fetch_add(1, std::memory_order_release);
    s.call.notify_all();
    s.take(0);
    for (int32_t left; (left = s.busy.load(std::memory_order_acquire)) != 0;) wait_change(s.busy, left);
}

std::shared_ptr<Pool> Pool::shared(int threads) {
    static auto& lock = *new std::mutex;
    static auto& pools = *new std::map<int, std::weak_ptr<Pool>>;  // never destroyed: workers may outlive static objects
    const std::lock_guard<std::mutex> guard(lock);
    auto pool = pools[threads].lock();
    if (!pool) pools[threads] = pool = std::make_shared<Pool>(threads);
    return pool;
}

}  // namespace bise
