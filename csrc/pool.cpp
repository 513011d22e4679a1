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

// One word says which call is on, how many tasks it has and which is next: a worker that wakes late takes a task of the
// call that is on or none at all. So the caller waits for tasks, never for a worker that the system has not run yet.
namespace ticket {
constexpr int kBits = 20;
constexpr uint64_t kMost = (uint64_t{1} << kBits) - 1;  // Pool::kMostTasks
inline uint64_t of(uint64_t call, uint64_t tasks) { return call << 2 * kBits | tasks << kBits; }
inline uint64_t next(uint64_t t) { return t & kMost; }
inline uint64_t tasks(uint64_t t) { return t >> kBits & kMost; }
}  // namespace ticket

struct Pool::State {
    std::mutex turn;
    alignas(64) std::atomic<uint32_t> call{0};    // grows by one per call; workers wait for it
    alignas(64) std::atomic<uint64_t> ticket{0};  // adding one takes a task
    alignas(64) std::atomic<int64_t> left{0};     // tasks that are not done
    Call fn = nullptr;                            // of the call that is on: read only by who holds one of its tasks
    const void* data = nullptr;
    std::atomic<bool> stop{false};
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
        for (uint64_t t = ticket.load(std::memory_order_acquire); ticket::next(t) < ticket::tasks(t);) {
            if (!ticket.compare_exchange_weak(t, t + 1, std::memory_order_acq_rel)) continue;
            fn(data, static_cast<int64_t>(ticket::next(t)), thread);
            if (left.fetch_sub(1, std::memory_order_acq_rel) == 1) left.notify_one();
            t = ticket.load(std::memory_order_acquire);
        }
    }
    void work(int thread) {
        for (uint32_t seen = 0; !stop;) {
            wait_change(call, seen);
            seen = call.load(std::memory_order_acquire);
            take(thread);
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
    s.fn = call, s.data = fn;
    s.left.store(tasks, std::memory_order_relaxed);
    s.ticket.store(ticket::of(s.call.load(std::memory_order_relaxed) + 1, static_cast<uint64_t>(tasks)),
                   std::memory_order_release);
    s.call.fetch_add(1, std::memory_order_release);
    s.call.notify_all();
    s.take(0);
    for (int64_t left; (left = s.left.load(std::memory_order_acquire)) != 0;) wait_change(s.left, left);
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
