//! How the agent keeps its memory small: the heap, and its own code.
//!
//! The C library's allocator is made for programs that want speed: a heap for each thread, and what is freed is kept for later. The agent has
//! one busy thread and a few that look at something now and then; five heaps with holes took a megabyte of
//! its memory. A large buffer, such as the 3 MiB that a QUIC endpoint receives into and hardly touches, lies outside of the
//! heap; but once one was freed, the next of its size would be put into it, and be filled with zeros there. Where
//! another C library is used, nothing is done.
//!
//! Most of the agent's memory is its code, and much of that is needed once: to read the configuration, to enrol, to
//! shake hands. The kernel maps what a program comes by, 64 KiB around each step, and leaves it mapped until memory is
//! short; the agent lets go of it before, and what it goes on to use is mapped again.

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

/// Unmaps the program's code and constants; what is used is mapped again from the file, or the page cache.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "only the linker knows where the code lies")]
pub(crate) fn give_back_code() {
    unsafe extern "C" {
        // The linker's own names (GNU ld, lld): the first byte of the program, and the end of its code.
        static __executable_start: u8;
        static etext: u8;
    }
    // SAFETY: what lies between the two is mapped from the program's file and never written to: what the dynamic
    // linker changes (`.data.rel.ro`, `.got`) and what the program changes lie behind `etext`. Dropping such
    // pages changes nothing that can be read.
    unsafe {
        let start = (&raw const __executable_start).cast_mut();
        let bytes = (&raw const etext).addr().saturating_sub(start.addr());
        let whole_pages = bytes - bytes % rustix::param::page_size();
        // It fails where the kernel has no such call, and then all stays as it is.
        libc::madvise(start.cast(), whole_pages, libc::MADV_DONTNEED);
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn keep_the_heap_small() {}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn give_back() {}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn give_back_code() {}
