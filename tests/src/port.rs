//! Ports for programs that must find theirs again after a restart: below those that the kernel gives to whoever
//! connects, so that nobody has taken it when its owner comes back.

use std::{
    net::{Ipv4Addr, TcpListener, UdpSocket},
    sync::atomic::{AtomicU32, Ordering},
};

use crate::fault::{Fault, Outcome};

/// The first and the number of them. The kernel's own begin at 32768 (`net.ipv4.ip_local_port_range`).
const FIRST: u32 = 12_000;
const COUNT: u32 = 20_000;

/// How many have been handed out by this process.
static TAKEN: AtomicU32 = AtomicU32::new(0);

/// A port of loopback that nobody has, on TCP and UDP, and that this process hands out once.
///
/// # Errors
///
/// When every port of the range is in use.
pub fn free() -> Outcome<u16> {
    // Processes side by side begin far from each other.
    let start = std::process::id().wrapping_mul(509);
    for _ in 0..COUNT {
        let turn = TAKEN.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + start.wrapping_add(turn) % COUNT;
        let port = u16::try_from(port).map_err(|_| Fault::new("a port above 65535"))?;
        let local = (Ipv4Addr::LOCALHOST, port);
        if TcpListener::bind(local).is_ok() && UdpSocket::bind(local).is_ok() {
            return Ok(port);
        }
    }
    Err(Fault::new(format!(
        "all {COUNT} ports from {FIRST} are in use"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_given_once_and_only_when_free() {
        let first = free().unwrap();
        assert_ne!(free().unwrap(), first);
        let near = TAKEN
            .load(Ordering::Relaxed)
            .wrapping_add(std::process::id().wrapping_mul(509));
        let next = u16::try_from(FIRST + near % COUNT).unwrap();
        let held = UdpSocket::bind((Ipv4Addr::LOCALHOST, next));
        assert_ne!(free().unwrap(), next);
        drop(held);
    }
}
