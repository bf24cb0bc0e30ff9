#pragma once
// Unpooling by torch's int64 indices, flat in the output's H x W plane: any index may go anywhere.

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace fastseg::cpu {

// A task is a plane (contiguous) or a block of neighbouring channels of an image (channels_last),
// so that no element belongs to two threads and the last writer is the last in raster order.
struct IndexedPlanes {
  static constexpr int64_t kChannelBlock = 16;  // a cache line of float32

  int64_t batch, channels, plane, pooled_plane;
  bool channels_last;

  int64_t blocks() const {
    return channels_last ? (channels + kChannelBlock - 1) / kChannelBlock : channels;
  }
  int64_t tasks() const { return batch * blocks(); }

  // Calls body(pooled element, output element of index 0) for each pooled element of a task, in
  // raster order. Output element of index k: that plus k * stride().
  template <class Body>
  void for_each(int64_t task, const Body& body) const {
    const int64_t n = task / blocks(), block = task % blocks();
    if (!channels_last) {
      for (int64_t k = 0; k < pooled_plane; ++k) {
        body(task * pooled_plane + k, task * plane);
      }
      return;
    }
    const int64_t first = block * kChannelBlock, end = std::min(first + kChannelBlock, channels);
    for (int64_t k = 0; k < pooled_plane; ++k) {
      for (int64_t c = first; c < end; ++c) {
        body((n * pooled_plane + k) * channels + c, n * plane * channels + c);
      }
    }
  }

  int64_t stride() const { return channels_last ? channels : 1; }

  template <class T>
  void zero(int64_t task, T* out) const {
    if (!channels_last) {
      std::fill_n(out + task * plane, plane, T{});
      return;
    }
    const int64_t n = task / blocks(), first = task % blocks() * kChannelBlock;
    const int64_t width = std::min(kChannelBlock, channels - first);
    for (int64_t k = 0; k < plane; ++k) {
      std::fill_n(out + (n * plane + k) * channels + first, width, T{});
    }
  }
};

template <class T>
void max_unpool2d_indices(const IndexedPlanes& planes, int64_t task, const T* values,
                          const int64_t* indices, T* out, std::atomic<bool>& bad) {
  planes.zero(task, out);
  planes.for_each(task, [&](int64_t pooled, int64_t origin) {
    const int64_t index = indices[pooled];
    if (index < 0 || index >= planes.plane) {
      bad.store(true, std::memory_order_relaxed);
      return;
    }
    out[origin + index * planes.stride()] = values[pooled];
  });
}

template <class T>
void max_unpool2d_indices_backward(const IndexedPlanes& planes, int64_t task, const T* grad,
                                   const int64_t* indices, T* out, std::atomic<bool>& bad) {
  planes.for_each(task, [&](int64_t pooled, int64_t origin) {
    const int64_t index = indices[pooled];
    if (index < 0 || index >= planes.plane) {
      bad.store(true, std::memory_order_relaxed);
      return;
    }
    out[pooled] = grad[origin + index * planes.stride()];
  });
}

}  // namespace fastseg::cpu
