//! How the C library's allocator keeps the agent's heap.
//!
//! It is made for programs that want speed: a heap for each thread, and what is freed is kept for later. The agent has
//! one busy thread and a few that look at something now and then; five heaps with holes took a megabyte of
//! its memory. Where another C library is used, nothing is done.

/// Lets all threads use one heap. Before the first of them is started.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "only the C library knows its allocator")]
pub(crate) fn share_one_heap() {
    // SAFETY: mallopt(3) takes two numbers and no memory of ours, and no other thread runs yet.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Gives back to the kernel what is free, in the middle of the heap too.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "only the C library knows its allocator")]
pub(crate) fn give_back() {
    // SAFETY: malloc_trim(3) touches nothing but pages that hold no allocation, and locks the heap meanwhile.
    unsafe { libc::malloc_trim(0) };
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn share_one_heap() {}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn give_back() {}
