//! How the C library's allocator keeps the heap of a process with many agents.
//!
//! A QUIC endpoint has 3 MiB to receive into and hardly touches them: outside of the heap they cost no memory. Once
//! one was freed, as each is that an agent has joined over, malloc(3) would put those of that size into the heap
//! and fill them with zeros there: 2.2 MB of resident memory an agent, and more time than all else it does.

/// What is larger lies outside of the heap, however often such a thing was freed.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const LARGE_BYTES: i32 = 1024 * 1024;

/// Sees to it, before the first thread is started. Where another C library is used, nothing is done.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "only the C library knows its allocator")]
pub fn keep_large_things_apart() {
    // SAFETY: mallopt(3) takes two numbers and no memory of ours, and no other thread runs yet.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BYTES) };
}

/// See above.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn keep_large_things_apart() {}
