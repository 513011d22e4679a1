// A block of memory aligned to pages, given back to the system when dropped, or a view of somebody else's. It does not ask for
// huge pages: where the system gives them decode is some 7 % faster, but on a virtual machine the first touch of 4 GB of them
// took 5 s instead of 2 (LOG.md).
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
    }
    // A view of memory that belongs to `owner`; release(owner) is called when the view is dropped.
    Buffer(const uint8_t* borrowed, size_t bytes, void (*release)(void*), void* owner)
        : data_(const_cast<uint8_t*>(borrowed)), size_(bytes), release_(release), owner_(owner) {}
    Buffer(Buffer&& other) noexcept { *this = std::move(other); }
    Buffer& operator=(Buffer&& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(size_, other.size_);
        std::swap(release_, other.release_);
        std::swap(owner_, other.owner_);
        return *this;
    }
    Buffer(const Buffer&) = delete;
    ~Buffer() {
        if (release_)
            release_(owner_);
        else if (data_)
            munmap(data_, size_);
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
    void (*release_)(void*) = nullptr;  // (a bare pointer: a std:: template would be compiled for every instruction set)
    void* owner_ = nullptr;
};

}  // namespace bise
