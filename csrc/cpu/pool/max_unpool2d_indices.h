#pragma once
// Unpooling by torch's int64 indices, flat in the output's H x W plane: any index may go anywhere.

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace fastseg::cpu {

// A task is some channels of one image, all of its pixels, so that no element belongs to two
// threads and the last writer is the last in raster order.
struct IndexedImages {
  int64_t batch, channels, plane, pooled_plane;
  bool channels_last;
  int64_t channels_per_task;

  // channels_last images are split among threads only where there are fewer images than threads,
  // in whole cache lines of float.
  IndexedImages(int64_t n, int64_t c, int64_t plane_size, int64_t pooled_size,
                bool is_channels_last, int64_t threads)
      : batch(n),
        channels(c),
        plane(plane_size),
        pooled_plane(pooled_size),
        channels_last(is_channels_last),
        channels_per_task(1) {
    if (!channels_last) return;
    const int64_t parts = std::max<int64_t>(1, threads / std::max<int64_t>(1, batch));
    const int64_t even = (channels + parts - 1) / parts;
    channels_per_task = (even + 15) / 16 * 16;
  }

  int64_t tasks_per_image() const { return (channels + channels_per_task - 1) / channels_per_task; }
  int64_t tasks() const { return batch * tasks_per_image(); }

  // Calls body(pooled element, channel's first element of the plane) in raster order. The element
  // of index k lies k * stride() further on.
  template <class Body>
  void for_each(int64_t task, const Body& body) const {
    const int64_t n = task / tasks_per_image();
    const int64_t first = task % tasks_per_image() * channels_per_task;
    const int64_t end = std::min(first + channels_per_task, channels);
    if (channels_last) {
      const int64_t pooled = n * pooled_plane * channels, origin = n * plane * channels;
      for (int64_t k = 0; k < pooled_plane; ++k) {
        for (int64_t c = first; c < end; ++c) body(pooled + k * channels + c, origin + c);
      }
    } else {
      const int64_t p = n * channels + first;
      for (int64_t k = 0; k < pooled_plane; ++k) body(p * pooled_plane + k, p * plane);
    }
  }

  int64_t stride() const { return channels_last ? channels : 1; }
};

// `out` is zero.
template <class T>
void max_unpool2d_indices(const IndexedImages& images, int64_t task, const T* values,
                          const int64_t* indices, T* out, std::atomic<bool>& bad) {
  const int64_t plane = images.plane, stride = images.stride();
  bool any_bad = false;
  images.for_each(task, [&](int64_t pooled, int64_t origin) {
    const int64_t index = indices[pooled];
    if (static_cast<uint64_t>(index) < static_cast<uint64_t>(plane)) {
      out[origin + index * stride] = values[pooled];
    } else {
      any_bad = true;
    }
  });
  if (any_bad) bad.store(true, std::memory_order_relaxed);
}

template <class T>
void max_unpool2d_indices_backward(const IndexedImages& images, int64_t task, const T* grad,
                                   const int64_t* indices, T* out, std::atomic<bool>& bad) {
  const int64_t plane = images.plane, stride = images.stride();
  bool any_bad = false;
  images.for_each(task, [&](int64_t pooled, int64_t origin) {
    const int64_t index = indices[pooled];
    if (static_cast<uint64_t>(index) < static_cast<uint64_t>(plane)) {
      out[pooled] = grad[origin + index * stride];
    } else {
      any_bad = true;
    }
  });
  if (any_bad) bad.store(true, std::memory_order_relaxed);
}

}  // namespace fastseg::cpu
