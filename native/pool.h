// The threads that compute: started at the first job, kept until the process ends.
//
// One job runs at a time, whichever Python threads or models ask: jobs queue at `Pool::Lease`, so cores are never
// oversubscribed. The caller works too. Which thread takes which task is left to chance, so a task must write what no
// other task writes, in an order of its own.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "memory.h"

namespace handlens {

class Pool {
public:
    // The pool of this process. A forked child gets a new one, since threads do not survive a fork.
    static Pool& get();

    // The exclusive use of the pool.
    class Lease {
    public:
        Lease() : pool_(get()), lock_(pool_.busy_) {}
        // Calls task(0) ... task(count - 1) on all threads and returns when all have come back. `stop` is asked now and
        // then by the calling thread; once it says true, tasks that were not begun are dropped and run returns false.
        bool run(size_t count, const std::function<void(size_t)>& task, const std::function<bool()>& stop);
        // Memory of at least this size, at a multiple of 64 bytes, for the length of the lease; kept for the next one.
        uint8_t* scratch(size_t bytes);
        // How many threads compute from now on, the caller's included.
        void set_threads(size_t count);

    private:
        Pool& pool_;
        std::unique_lock<std::mutex> lock_;
    };

    size_t threads() const { return threads_; }

private:
    struct Job {
        size_t count;
        const std::function<void(size_t)>* task;
        std::atomic<size_t> next{0};
        std::atomic<bool> stopped{false};
    };

    void work();
    void start_workers();
    void end_workers();
    static void perform(Job& job);

    std::mutex busy_;
    std::atomic<size_t> threads_{1};
    std::vector<std::thread> workers_;
    Aligned scratch_;
    size_t scratch_bytes_ = 0;

    std::mutex mutex_;                   // guards job_ and ending_
    std::condition_variable wake_;       // a job came, or the end
    std::condition_variable done_;       // the last worker left the job
    Job* job_ = nullptr;
    bool ending_ = false;
    std::atomic<uint64_t> jobs_{0};      // how many there have been
    std::atomic<size_t> inside_{0};      // workers in the job
};

}  // namespace handlens
