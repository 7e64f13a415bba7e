// A stack of layers in one call, for inference: one after the other, or each on a thread of its own
// that follows the layer below.
//
// Layers side by side need no barrier in a step, and each keeps its weights in the cache of one
// core. They start one chunk of steps after another, so their chunks are short.
#pragma once

#include "forward.h"

FASTRNN_NAMESPACE_BEGIN

template <class Cell, class T>
class Stack {
 public:
  Stack(Forward<T>* layers, int count, int threads) : layers_(layers), count_(count) {
    lanes_ = threads < count ? threads : count;
    if (lanes_ > kMostLanes) lanes_ = kMostLanes;
    side_by_side_ = lanes_ > 1 && layers[0].directions == 1 && side_by_side_pays(threads);
  }

  bool run(int threads, Crowd& crowd) {
    if (!connect()) return false;
    if (side_by_side_) return run_side_by_side(crowd);
    for (int l = 0; l < count_; ++l)
      if (!forward<Cell>(layers_[l], threads, crowd)) return false;
    return true;
  }

 private:
  static constexpr int kMostLanes = 8;
  static constexpr int64_t kChunks = 16;
  static constexpr double kMargin = 1.15;  // close calls are won by threads that share a layer

  static int64_t steps_of_chunk(int64_t steps) { return (steps + kChunks - 1) / kChunks; }

  bool side_by_side_pays(int threads) const {
    const int64_t steps = layers_[0].steps;
    double apart = 0, slowest = 0, together = 0;
    for (int l = 0; l < count_; ++l) {
      apart += ForwardLayer<Cell, T>::plan(layers_[l], threads).seconds * steps;
      const double alone = ForwardLayer<Cell, T>::plan(layers_[l], 1).seconds * steps;
      slowest = alone > slowest ? alone : slowest;
      if (l % lanes_ == lanes_ - 1 || l + 1 == count_) {  // a round of the lanes
        together += slowest;
        slowest = 0;
      }
    }
    // The last lane starts when the others have done a chunk each.
    const double chunk = double(steps_of_chunk(steps)) / (steps > 0 ? steps : 1);
    together *= 1 + chunk * (lanes_ - 1) / ((count_ + lanes_ - 1) / lanes_);
    together += Machine::fork(lanes_) + Machine::barrier(2) * kChunks;
    return kMargin * together < apart;
  }

  // Gives each layer the output of the one below. One after the other they need two buffers.
  bool connect() {
    const Forward<T>& last = layers_[count_ - 1];
    const int64_t width = last.directions * last.output, values = last.rows * width;
    const int buffers = side_by_side_ || count_ < 3 ? count_ - 1 : 2;
    if (!buffers) return true;
    outputs_.allocate(buffers * values * int64_t(sizeof(T)));
    if (!outputs_.data()) return false;
    for (int l = 0; l + 1 < count_; ++l) {
      T* y = (T*)outputs_.data() + l % buffers * values;
      layers_[l].y = y;
      layers_[l + 1].x = y;
      layers_[l + 1].x_step = layers_[l].batch * width, layers_[l + 1].x_row = width;
    }
    return true;
  }

  bool run_side_by_side(Crowd& crowd) {
    for (int first = 0; first < count_; first += kMostLanes) {
      const int count = count_ - first < kMostLanes ? count_ - first : kMostLanes;
      ForwardLayer<Cell, T> layers[kMostLanes];
      Progress progress[kMostLanes];
      Barrier end;
      for (int l = 0; l < count; ++l)
        if (!layers[l].set_up(layers_[first + l], {1, Split::rows, 0},
                              steps_of_chunk(layers_[0].steps)))
          return false;
#pragma omp parallel num_threads(lanes_)
      {
        // In the order of the layers, so that nobody waits for a layer that nobody works on,
        // however many threads there are.
        const int size = team_size();
        const Stopwatch watch(size);
        for (int l = thread_rank(); l < count; l += size)
          layers[l].run(0, 1, crowd, l ? &progress[l - 1] : nullptr, &progress[l]);
        watch.stop(end, 0, crowd);
      }
    }
    return true;
  }

  Forward<T>* layers_;
  const int count_;
  int lanes_;
  bool side_by_side_;
  Workspace outputs_;
};

// Forward of layers of equal width, the lowest first. x of all but the first and y of all but the
// last are filled in. Returns false when there is no memory for the workspace.
template <class Cell, class T>
bool forward_stack(Forward<T>* layers, int count, int threads) {
  threads = Crowd::usable(threads);
  Crowd crowd;
  const bool done = Stack<Cell, T>(layers, count, threads).run(threads, crowd);
  crowd.conclude();
  return done;
}

FASTRNN_NAMESPACE_END
