#include "pool.h"

#include <chrono>

#ifndef _WIN32
#include <pthread.h>
#endif

namespace handlens {
namespace {

// How long a thread looks for what it waits for before it sleeps: the calls of one decode step follow one another
// within this time, and waking a thread takes longer.
constexpr auto kSpin = std::chrono::microseconds(30);
// How often the caller asks whether to stop.
constexpr auto kAskEvery = std::chrono::milliseconds(20);

std::atomic<Pool*> current{nullptr};

template <class Condition>
bool spin_until(const Condition& condition) {
    const auto end = std::chrono::steady_clock::now() + kSpin;
    while (!condition()) {
#ifdef HANDLENS_X86
        for (int i = 0; i < 8; i++) __builtin_ia32_pause();
#else
        std::this_thread::yield();
#endif
        if (std::chrono::steady_clock::now() > end) return condition();
    }
    return true;
}

}  // namespace

Pool& Pool::get() {
    // Never destroyed: at the end of the process its threads may still sleep in it.
    static std::once_flag once;
    std::call_once(once, [] {
#ifndef _WIN32
        pthread_atfork(nullptr, nullptr, [] {
            const size_t threads = current.load() ? current.load()->threads() : 1;
            Pool* pool = new Pool;  // the old one is left alone: its locks may be held by threads that are gone
            pool->threads_ = threads;
            current = pool;
        });
#endif
        if (!current.load()) current = new Pool;
    });
    return *current.load();
}

void Pool::start_workers() {
    while (workers_.size() + 1 < threads_) workers_.emplace_back([this] { work(); });
}

void Pool::end_workers() {
    {
        std::lock_guard lock(mutex_);
        ending_ = true;
    }
    jobs_++;
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
    workers_.clear();
    ending_ = false;
}

void Pool::perform(Job& job) {
    for (size_t i; !job.stopped && (i = job.next++) < job.count;) (*job.task)(i);
}

void Pool::work() {
    uint64_t seen = 0;
    while (true) {
        spin_until([&] { return jobs_ != seen; });
        std::unique_lock lock(mutex_);
        wake_.wait(lock, [&] { return ending_ || (job_ && jobs_ != seen); });
        if (ending_) return;
        seen = jobs_;
        Job& job = *job_;
        inside_++;
        lock.unlock();
        perform(job);
        lock.lock();
        if (--inside_ == 0) done_.notify_one();
    }
}

Pool::Lease::Lease(Kind kind) : pool_(get()), kind_(kind) {
    std::unique_lock lock(pool_.leases_);
    const bool exclusive = kind == Kind::exclusive;
    pool_.callers_ += !exclusive;
    pool_.exclusive_waiting_ += exclusive;
    pool_.returned_.wait(lock, [&] {
        if (pool_.taken_ || (!exclusive && pool_.exclusive_waiting_)) return false;
        alone_ = !exclusive && pool_.callers_ >= pool_.threads_;
        // More than there are threads, or cores would idle while sleepers wake between two short jobs.
        return alone_ ? pool_.alone_ < 2 * pool_.threads_ : pool_.alone_ == 0;
    });
    pool_.exclusive_waiting_ -= exclusive;
    pool_.alone_ += alone_;
    pool_.taken_ = !alone_;
    if (!pool_.spare_.empty()) {
        scratch_ = std::move(pool_.spare_.back());
        pool_.spare_.pop_back();
    }
}

Pool::Lease::~Lease() {
    {
        std::lock_guard lock(pool_.leases_);
        pool_.callers_ -= kind_ == Kind::among_others;
        pool_.alone_ -= alone_;
        pool_.taken_ = false;
        if (scratch_.memory && pool_.spare_.size() < pool_.threads_) pool_.spare_.push_back(std::move(scratch_));
    }
    pool_.returned_.notify_all();
}

bool Pool::Lease::run(size_t count, const std::function<void(size_t)>& task, const std::function<bool()>& stop) {
    Pool::Job job{count, &task};
    const bool shared = !alone_ && count > 1 && pool_.threads_ > 1;
    if (shared) {
        pool_.start_workers();
        {
            std::lock_guard lock(pool_.mutex_);
            pool_.job_ = &job;
            pool_.jobs_++;
        }
        pool_.wake_.notify_all();
    }
    auto asked = std::chrono::steady_clock::now();
    for (size_t i; !job.stopped && (i = job.next++) < count;) {
        task(i);
        if (const auto now = std::chrono::steady_clock::now(); now - asked > kAskEvery) {
            asked = now;
            job.stopped = stop();
        }
    }
    if (shared) {
        {
            std::lock_guard lock(pool_.mutex_);
            pool_.job_ = nullptr;  // workers that wake up now find nothing
        }
        if (!spin_until([&] { return pool_.inside_ == 0; })) {
            std::unique_lock lock(pool_.mutex_);
            pool_.done_.wait(lock, [&] { return pool_.inside_ == 0; });
        }
    }
    return !job.stopped;
}

uint8_t* Pool::Lease::scratch(size_t bytes) {
    if (bytes > scratch_.bytes) {
        scratch_ = {};
        scratch_ = {allocate(bytes), bytes};
    }
    return scratch_.memory.get();
}

void Pool::Lease::set_threads(size_t count) {
    pool_.end_workers();
    pool_.threads_ = count;
}

}  // namespace handlens
