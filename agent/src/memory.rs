//! How the C library's allocator keeps the agent's heap.
//!
//! It is made for programs that want speed: a heap for each thread, and what is freed is kept for later. The agent has
//! one busy thread and a few that look at something now and then; five heaps with holes took a megabyte of
//! its memory. A large buffer, such as the 3 MiB that a QUIC endpoint receives into and hardly touches, lies outside of the
//! heap; but once one was freed, the next of its size would be put into it, and be filled with zeros there. Where
//! another C library is used, nothing is done.

/// What is larger lies outside of the heap, however often such a thing was freed: malloc(3)'s own first value.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const LARGE_BYTES: i32 = 128 * 1024;

/// Lets all threads use one heap, for what is small. Before the first of them is started.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "only the C library knows its allocator")]
pub(crate) fn keep_the_heap_small() {
    for (parameter, value) in [
        (libc::M_ARENA_MAX, 1),
        (libc::M_MMAP_THRESHOLD, LARGE_BYTES),
    ] {
        // SAFETY: mallopt(3) takes two numbers and no memory of ours, and no other thread runs yet.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// Gives back to the kernel what is free, in the middle of the heap too.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "only the C library knows its allocator")]
pub(crate) fn give_back() {
    // SAFETY: malloc_trim(3) touches nothing but pages that hold no allocation, and locks the heap meanwhile.
    unsafe { libc::malloc_trim(0) };
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn keep_the_heap_small() {}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn give_back() {}
