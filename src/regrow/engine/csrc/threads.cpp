#include "threads.hpp"

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>
#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

namespace regrow {
namespace {

class Pool {
  public:
    explicit Pool(int helpers) {
        for (int i = 0; i < helpers; i++)
            threads_.emplace_back([this, i] { serve(i + 1); });
    }
    ~Pool() {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            stop_ = true;
        }
        wake_.notify_all();
        for (auto& t : threads_)
            t.join();
    }
    int helpers() const { return int(threads_.size()); }
    void run(int count, const std::function<void(int)>& work) {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            work_ = &work, count_ = count, round_++;
            pending_ = count - 1;
        }
        wake_.notify_all();
        work(0);
        for (int spin = 0; spin < 20000 && pending_.load(std::memory_order_acquire) > 0; spin++)
            pause();
        if (pending_.load(std::memory_order_acquire) == 0)
            return;
        std::unique_lock<std::mutex> lock(mutex_);
        done_.wait(lock, [&] { return pending_.load() == 0; });
    }

  private:
    static void pause() {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
    }
    void serve(int thread) {
        long seen = 0;
        for (;;) {
            for (int spin = 0; spin < 4000 && round_.load(std::memory_order_acquire) == seen; spin++)
                pause();
            const std::function<void(int)>* work = nullptr;
            {
                std::unique_lock<std::mutex> lock(mutex_);
                wake_.wait(lock, [&] { return stop_ || round_.load() != seen; });
                if (stop_)
                    return;
                seen = round_.load();
                if (thread < count_)
                    work = work_;
            }
            if (!work)
                continue;
            (*work)(thread);
            if (pending_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
                std::lock_guard<std::mutex> lock(mutex_);
                done_.notify_one();
            }
        }
    }
    std::vector<std::thread> threads_;
    std::mutex mutex_;
    std::condition_variable wake_, done_;
    const std::function<void(int)>* work_ = nullptr;
    int count_ = 0;
    bool stop_ = false;
    std::atomic<long> round_{0};
    std::atomic<int> pending_{0};
};

std::mutex entry;
Pool* pool = nullptr;  // never destroyed: threads may outlive the interpreter's order of teardown
int owner = 0;         // a forked child has no threads and makes its own

int process() {
#if defined(__unix__) || defined(__APPLE__)
    return int(getpid());
#else
    return 1;
#endif
}

}  // namespace

void parallel(int count, const std::function<void(int)>& work) {
    if (count <= 1) {
        work(0);
        return;
    }
    std::lock_guard<std::mutex> lock(entry);
    if (!pool || owner != process() || pool->helpers() < count - 1) {
        if (pool && owner == process())
            delete pool;
        pool = new Pool(count - 1), owner = process();
    }
    pool->run(count, work);
}

}  // namespace regrow
