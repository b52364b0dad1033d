// Whether an index is what it must be. Writers wait meanwhile; memory that is not an index at all does no harm.
#pragma once

#include <sstream>
#include <string>
#include <vector>

#include "anabranch/index/scan.hpp"

namespace anabranch::index_detail {

template <CpuIsa isa, int key_words>
struct Validator {
  using Tree = index_detail::Tree<isa, key_words>;
  using Node = typename Tree::Node;
  using Key = IndexKey<key_words>;

  /// What is wrong first, or nothing. Visits every node once: keys ascend and lie between their node's borders, levels
  /// are linked from left to right, parents name children that begin where they say, nothing is locked, every node is
  /// either in use or free, and the size is the number of keys.
  static std::string check(const Tree& tree) {
    const IndexPause pause(tree.arena, true);
    return Validator(tree).run();
  }

 private:
  explicit Validator(const Tree& tree) : tree_(tree), used_(tree.arena.control[IndexControl::used]) {}

  std::string run() {
    if (used_ < 2 || used_ > tree_.arena.capacity()) return "control: used nodes are out of range";
    seen_.assign(used_, false);
    const Node root = tree_.node(index_root);
    if (root.level() < 0 || root.level() >= index_max_levels) return "root: its level is out of range";
    if (root.next() != 0) return "root: it has a right neighbour";
    // Level by level from the top: the nodes of a level from left to right, and the borders that parents name.
    std::vector<Entry> named{{index_root, least_key<key_words>()}};
    for (int level = root.level(); level >= 0 && problem_.empty(); --level) named = check_level(level, named);
    if (problem_.empty() && keys_ != tree_.arena.size())
      say("size is ", tree_.arena.size(), ", but there are ", keys_, " keys");
    if (problem_.empty()) check_free();
    return problem_;
  }

  struct Entry {
    uint32_t id;
    Key border;
  };

  std::vector<Entry> check_level(int level, const std::vector<Entry>& named) {
    std::vector<Entry> below;
    size_t entry = 0;
    Key border = least_key<key_words>();
    for (uint32_t id = named[0].id; id != 0;) {
      if (id >= used_) return say("level ", level, ": node ", id, " was never taken"), below;
      const Node node = tree_.node(id);
      if (seen_[id]) return say("node ", id, ": it is in two places"), below;
      seen_[id] = true;
      if (entry < named.size() && named[entry].id == id) {
        if (!(named[entry].border == border)) return say("node ", id, ": its parent names another first key"), below;
        ++entry;
      }
      if (!check_node(node, level, border)) return below;
      for (int i = 0; level > 0 && i < node.count(); ++i) below.push_back({node.child(i), node.key(false, i)});
      if (level == 0) keys_ += node.count();
      border = node.high();
      id = node.next();
    }
    if (entry != named.size()) say("level ", level, ": a parent names a node that its left neighbours do not reach");
    return below;
  }

  bool check_node(const Node& node, int level, const Key& border) {
    const bool leaf = level == 0;
    if (node.level() != level) return say("node ", node.id, ": level is ", node.level(), " on level ", level);
    if (*node.lock() & ~VersionLock::version_mask) return say("node ", node.id, ": it is locked");
    const auto count = static_cast<int32_t>(node.words[IndexNode<key_words>::shape]);
    if (count < (leaf ? 0 : 1) || count > node.capacity()) return say("node ", node.id, ": it has ", count, " entries");
    if (!leaf && !(node.key(false, 0) == border)) return say("node ", node.id, ": its first key is not its border");
    for (int i = 0; i < count; ++i) {
      const Key key = node.key(leaf, i);
      if (key < border || (i > 0 && !(node.key(leaf, i - 1) < key)) || (node.next() != 0 && !(key < node.high())))
        return say("node ", node.id, ": key ", i, " is out of order");
    }
    return node.next() == 0 || border < node.high() || say("node ", node.id, ": its borders are out of order");
  }

  void check_free() {
    auto id = static_cast<uint32_t>(tree_.arena.control[IndexControl::free_head]);
    while (id != 0) {
      if (id >= used_ || seen_[id]) return static_cast<void>(say("node ", id, ": it is free and in use"));
      seen_[id] = true;
      id = tree_.node(id).next();
    }
    for (int64_t node = index_root; node < used_; ++node) {
      if (!seen_[node]) return static_cast<void>(say("node ", node, ": nothing leads to it"));
    }
  }

  template <class... Parts>
  bool say(const Parts&... parts) {
    std::ostringstream text;
    (text << ... << parts);
    problem_ = text.str();
    return false;
  }

  const Tree& tree_;
  const int64_t used_;
  std::vector<bool> seen_;
  int64_t keys_ = 0;
  std::string problem_;
};

}  // namespace anabranch::index_detail
