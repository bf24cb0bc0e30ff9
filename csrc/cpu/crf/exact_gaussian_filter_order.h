#pragma once
// The order of a k-d tree, in which points that follow one another lie close together.

#include <cstdint>
#include <vector>

namespace fastseg::cpu {

// Points [begin, end) of the order: one node of the tree.
struct KdNode {
  int64_t begin, end;
};

// Sorts points, (points, dims), into the order of a k-d tree whose leaves hold kLeaf points: every
// node is split at the middle of its blocks of kBlock points, or of its leaves, along its widest
// axis. Equal coordinates are ordered by index, so that the order is a function of the points.
template <class T>
class KdTree {
 public:
  KdTree(const T* points, int64_t dims, int32_t* order)
      : points_(points), dims_(dims), order_(order) {}

  // The nodes that are left to sort() once the root over n points was split down to nodes of at
  // most n / 16 points: work that threads share.
  std::vector<KdNode> split_root(int64_t n);

  // Splits a node down to its leaves.
  void sort(KdNode node);

 private:
  // Splits a node in two, unless it is a leaf: returns the position between them, or node.end.
  int64_t split(KdNode node);
  int widest_axis(KdNode node) const;

  const T* points_;
  int64_t dims_;
  int32_t* order_;
};

extern template class KdTree<float>;
extern template class KdTree<double>;

}  // namespace fastseg::cpu
