//! How much memory a query may take: everything that SQLite holds for its thread.
//!
//! SQLite's own limits are the whole process's, so that a writer would fail for what a query takes, and it looks at
//! its progress handler between instructions only, not while it makes a plan of a statement. So its allocator
//! is wrapped: each thread counts what it holds, and one that runs a query is refused more than its bound.
//! SQLite then ends the statement as out of memory, wherever it is.

#![expect(unsafe_code, reason = "SQLite takes an allocator as C functions only")]

use std::{
    cell::Cell,
    ffi::{c_int, c_void},
    ptr,
    sync::OnceLock,
};

use rusqlite::ffi;

use crate::StoreError;

thread_local! {
    /// Bytes that this thread may still take.
    static LEFT: Cell<i64> = const { Cell::new(i64::MAX) };
}

/// SQLite's own allocator, once it is wrapped.
static INNER: OnceLock<Inner> = OnceLock::new();

struct Inner(ffi::sqlite3_mem_methods);

// SAFETY: function pointers, and a pointer that only these functions use; SQLite calls them from all threads.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

/// Wraps the allocator. Must come before SQLite is used for the first time; later calls do nothing.
pub(crate) fn install() -> Result<(), StoreError> {
    static DONE: OnceLock<bool> = OnceLock::new();
    if *DONE.get_or_init(wrap) {
        Ok(())
    } else {
        let why = "SQLite was started before its memory could be bounded";
        Err(StoreError::Invalid(why.to_owned()))
    }
}

fn wrap() -> bool {
    let mut methods = ffi::sqlite3_mem_methods {
        xMalloc: None,
        xFree: None,
        xRealloc: None,
        xSize: None,
        xRoundup: None,
        xInit: None,
        xShutdown: None,
        pAppData: ptr::null_mut(),
    };
    // SAFETY: the option takes a pointer to methods that SQLite fills, and SQLite is not running yet: else it
    // says so and nothing is changed.
    let got = unsafe { ffi::sqlite3_config(ffi::SQLITE_CONFIG_GETMALLOC, &raw mut methods) };
    if got != ffi::SQLITE_OK || INNER.set(Inner(methods)).is_err() {
        return false;
    }
    methods.xMalloc = Some(malloc);
    methods.xRealloc = Some(realloc);
    methods.xFree = Some(free);
    // SAFETY: the option takes a pointer to methods, which SQLite copies; the three functions keep to the contract
    // of the ones they call.
    unsafe { ffi::sqlite3_config(ffi::SQLITE_CONFIG_MALLOC, &raw const methods) == ffi::SQLITE_OK }
}

/// From here on this thread may take so many bytes more.
pub(super) fn bound(bytes: i64) {
    LEFT.set(bytes);
}

/// Takes `bytes` (which may be less than nothing) from what is left; whether that was allowed.
fn take(bytes: i64) -> bool {
    // A thread that is ending has no count any more, and is not refused anything.
    LEFT.try_with(|left| {
        let after = left.get().saturating_sub(bytes);
        let allowed = bytes <= 0 || after >= 0;
        if allowed {
            left.set(after);
        }
        allowed
    })
    .unwrap_or(true)
}

fn inner() -> Option<&'static ffi::sqlite3_mem_methods> {
    INNER.get().map(|inner| &inner.0)
}

/// Bytes of an allocation.
unsafe fn size(at: *mut c_void) -> i64 {
    match inner().and_then(|inner| inner.xSize) {
        // SAFETY: the caller has `at` from this allocator.
        Some(size) if !at.is_null() => i64::from(unsafe { size(at) }),
        _ => 0,
    }
}

unsafe extern "C" fn malloc(bytes: c_int) -> *mut c_void {
    let Some(malloc) = inner().and_then(|inner| inner.xMalloc) else {
        return ptr::null_mut();
    };
    if !take(bytes.into()) {
        return ptr::null_mut();
    }
    // SAFETY: SQLite's arguments, passed on.
    let at = unsafe { malloc(bytes) };
    // SAFETY: just allocated, or null.
    let size = unsafe { size(at) };
    take(size - i64::from(bytes));
    at
}

unsafe extern "C" fn realloc(before: *mut c_void, bytes: c_int) -> *mut c_void {
    let Some(realloc) = inner().and_then(|inner| inner.xRealloc) else {
        return ptr::null_mut();
    };
    // SAFETY: SQLite has `before` from this allocator.
    let had = unsafe { size(before) };
    if !take(i64::from(bytes) - had) {
        return ptr::null_mut();
    }
    // SAFETY: SQLite's arguments, passed on.
    let at = unsafe { realloc(before, bytes) };
    let has = if at.is_null() {
        had
    } else {
        // SAFETY: just allocated.
        unsafe { size(at) }
    };
    take(has - i64::from(bytes));
    at
}

unsafe extern "C" fn free(at: *mut c_void) {
    // SAFETY: SQLite has `at` from this allocator.
    take(-unsafe { size(at) });
    if let Some(free) = inner().and_then(|inner| inner.xFree) {
        // SAFETY: SQLite's argument, passed on.
        unsafe { free(at) };
    }
}
