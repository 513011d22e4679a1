// A block of memory aligned to cache lines; large ones ask for huge pages and are given back to the system when dropped.
#pragma once
#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <new>
#include <utility>

namespace bise {

class Buffer {
  public:
    Buffer() = default;
    // Zero-filled. Throws std::bad_alloc.
    explicit Buffer(size_t bytes) : size_(bytes) {
        if (!bytes) return;
        void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED) throw std::bad_alloc();
        data_ = static_cast<uint8_t*>(p);
#ifdef MADV_HUGEPAGE
        if (bytes >= (size_t{4} << 20)) madvise(p, bytes, MADV_HUGEPAGE);
#endif
    }
    Buffer(Buffer&& other) noexcept { *this = std::move(other); }
    Buffer& operator=(Buffer&& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(size_, other.size_);
        return *this;
    }
    Buffer(const Buffer&) = delete;
    ~Buffer() {
        if (data_) munmap(data_, size_);
    }
    __attribute__((always_inline)) uint8_t* bytes() const { return data_; }
    size_t size() const { return size_; }
    template <class X>
    X* as() const {
        return reinterpret_cast<X*>(data_);
    }

  private:
    uint8_t* data_ = nullptr;
    size_t size_ = 0;
};

}  // namespace bise
