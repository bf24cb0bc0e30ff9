// The k-d tree's order: the points are split at the median of their longest side, again and again.

#include "cpu/crf/exact_gaussian_filter_order.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "cpu/crf/exact_gaussian_filter.h"

namespace fastseg::cpu {

template <class T>
std::vector<KdNode> KdTree<T>::split_root(int64_t n) {
  std::iota(order_, order_ + n, 0);
  std::vector<KdNode> open{{0, n}}, nodes;
  while (!open.empty()) {
    const KdNode node = open.back();
    open.pop_back();
    const int64_t middle = node.end - node.begin > n / 16 ? split(node) : node.end;
    if (middle == node.end) {
      nodes.push_back(node);
    } else {
      open.push_back({node.begin, middle});
      open.push_back({middle, node.end});
    }
  }
  return nodes;
}

template <class T>
void KdTree<T>::sort(KdNode node) {
  const int64_t middle = split(node);
  if (middle == node.end) {
    std::sort(order_ + node.begin, order_ + node.end);  // whatever order the selection left
  } else {
    sort({node.begin, middle});
    sort({middle, node.end});
  }
}

template <class T>
int64_t KdTree<T>::split(KdNode node) {
  const int64_t n = node.end - node.begin;
  if (n <= kLeaf) return node.end;
  const int64_t unit = n > kBlock ? kBlock : kLeaf;
  const int64_t left = (n + unit - 1) / unit / 2 * unit;
  const int axis = widest_axis(node);
  std::vector<std::pair<T, int32_t>> keys(n);
  int32_t* order = order_ + node.begin;
  for (int64_t i = 0; i < n; ++i) keys[i] = {points_[order[i] * dims_ + axis], order[i]};
  std::nth_element(keys.begin(), keys.begin() + left, keys.end());
  for (int64_t i = 0; i < n; ++i) order[i] = keys[i].second;
  return node.begin + left;
}

template <class T>
int KdTree<T>::widest_axis(KdNode node) const {
  std::vector<T> lower(dims_), upper(dims_);
  for (int64_t i = node.begin; i < node.end; ++i) {
    const T* p = points_ + order_[i] * dims_;
    for (int64_t a = 0; a < dims_; ++a) {
      lower[a] = i == node.begin ? p[a] : std::min(lower[a], p[a]);
      upper[a] = i == node.begin ? p[a] : std::max(upper[a], p[a]);
    }
  }
  int widest = 0;
  for (int a = 1; a < dims_; ++a) {
    if (upper[a] - lower[a] > upper[widest] - lower[widest]) widest = a;
  }
  return widest;
}

template class KdTree<float>;
template class KdTree<double>;

}  // namespace fastseg::cpu
