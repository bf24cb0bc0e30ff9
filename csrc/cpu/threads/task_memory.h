#pragma once
// Objects that tasks borrow: as many come to be as there are tasks at once.

#include <memory>
#include <mutex>
#include <utility>
#include <vector>

namespace fastseg::cpu {

template <class T>
class TaskMemory {
 public:
  // Calls body(object) with one that nobody else has meanwhile, by make() where there is none: a
  // std::unique_ptr<T>.
  template <class Make, class Body>
  void borrow(const Make& make, const Body& body) {
    std::unique_ptr<T> object;
    {
      const std::lock_guard lock(mutex_);
      if (!idle_.empty()) {
        object = std::move(idle_.back());
        idle_.pop_back();
      }
    }
    if (!object) object = make();
    body(*object);
    const std::lock_guard lock(mutex_);
    idle_.push_back(std::move(object));
  }

  void clear() { idle_.clear(); }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<T>> idle_;
};

}  // namespace fastseg::cpu
