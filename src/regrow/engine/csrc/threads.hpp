// A few worker threads that run one function at a time; thread 0 is the caller.
#pragma once
#include <functional>

namespace regrow {

// Calls work(thread) for thread = 0 .. count - 1 and returns when all are done. One caller at a time.
void parallel(int count, const std::function<void(int)>& work);

}  // namespace regrow
