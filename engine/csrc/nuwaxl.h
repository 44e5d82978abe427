// The scheduler of very long video as a C++ library: #include <nuwaxl/nuwaxl.h>, link nuwaxl::core.
//
//   Plan       (plan.h)       the segments of a video, and who gives whom its known frames
//   CostModel  (cost.h)       what one denoising step takes on a device, by batch size
//   Scheduler  (scheduler.h)  says which device denoises or decodes what next
//   simulate   (clock.h)      the same scheduler on a virtual clock: what a render would take
//   normal_noise (noise.h)    N(0, 1) that depends on a segment's place and the seed alone
//
// The library has no threads and no devices of its own. A program gives every device a thread:
//
//   while (const auto work = scheduler.next(device)) {  // blocks
//       // a decode window: decode it, then done(device, items); its consumer calls consumed() when it took the clip.
//       // segments: until none is left under way, one denoising step of all of them; advance(device); done(device,
//       // those that had their last step); if any is left, join(device) for newcomers.
//   }
//
// Threads. Plan and CostModel are values: const methods may be called from any thread at once. All methods of one
// Scheduler may be called from any thread at once; for one device, by one thread at a time. It takes one mutex, calls
// no code of the program's, and blocks in next() alone. What a thread wrote before done() is visible to every thread
// that was given work by next() or join() after it: the frames of a parent need no lock of their own.
//
// Errors. Wrong arguments and wrong use throw std::invalid_argument, "expected ...; found ...; what to do", and change
// nothing. Apart from that only std::bad_alloc is thrown, and by simulate() what the program's own check throws.
//
// Names that these headers declare but nuwaxl.h does not list (Job, ReadyQueue, StepTimes, share, ...) are parts of the
// scheduler, installed because it is made of them; they change without notice. docs/embedding.md has the whole story,
// examples/cpp/ a program that is built on it.
#pragma once

#include "clock.h"
#include "cost.h"
#include "noise.h"
#include "plan.h"
#include "scheduler.h"
