// The threads that compute: started at the first job, kept until the process ends.
//
// Whichever Python threads or models ask, jobs queue at `Pool::Lease`. One job runs at a time, on all threads; but where as
// many callers want to compute as there are threads, each runs its own job alone, for sharing out small jobs takes longer
// than they do: at most twice as many as there are threads. The caller works too. Which thread takes which task is left to
// chance, so a task must write what no other task writes, in an order of its own.
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
    struct Scratch {
        Aligned memory;
        size_t bytes = 0;
    };

public:
    // The pool of this process. A forked child gets a new one, since threads do not survive a fork.
    static Pool& get();

    // The use of the pool.
    class Lease {
    public:
        enum class Kind { exclusive, among_others };
        // As long as an exclusive one is held nobody else computes. Among others: alone, if there are enough of them.
        explicit Lease(Kind kind = Kind::exclusive);
        ~Lease();
        Lease(const Lease&) = delete;
        Lease& operator=(const Lease&) = delete;
        // Calls task(0) ... task(count - 1) on all threads and returns when all have come back. `stop` is asked now and
        // then by the calling thread; once it says true, tasks that were not begun are dropped and run returns false.
        bool run(size_t count, const std::function<void(size_t)>& task, const std::function<bool()>& stop);
        // Memory of at least this size, at a multiple of 64 bytes, for the length of the lease; kept for a later one.
        uint8_t* scratch(size_t bytes);
        // How many threads compute from now on, the caller's included.
        void set_threads(size_t count);

    private:
        Pool& pool_;
        Kind kind_;
        bool alone_ = false;  // on the caller's thread, beside others
        Scratch scratch_;
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

    std::atomic<size_t> threads_{1};
    std::vector<std::thread> workers_;

    std::mutex leases_;                  // guards what follows
    std::condition_variable returned_;   // a lease ended
    size_t callers_ = 0;                 // that compute or wait to, among others
    size_t alone_ = 0;                   // leases that run beside each other
    size_t exclusive_waiting_ = 0;       // which go first, or might never
    bool taken_ = false;                 // by a lease that nothing runs beside
    std::vector<Scratch> spare_;

    std::mutex mutex_;                   // guards job_ and ending_
    std::condition_variable wake_;       // a job came, or the end
    std::condition_variable done_;       // the last worker left the job
    Job* job_ = nullptr;
    bool ending_ = false;
    std::atomic<uint64_t> jobs_{0};      // how many there have been
    std::atomic<size_t> inside_{0};      // workers in the job
};

}  // namespace handlens
