//! Dumps of the kernel's tables by netlink(7): exact, and far cheaper than their text in `/proc`.

use std::{io, time::Duration};

use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType,
    netlink::SocketAddrNetlink,
    recv, sendto, socket_with,
    sockopt::{Timeout, set_socket_timeout},
};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
const HEADER_BYTES: usize = 16;

/// Asks for all entries with a request of that type and content, and hands over type and content of
/// each answer. Without a protocol it is NETLINK_ROUTE that is asked.
pub(super) fn dump(
    protocol: Option<Protocol>,
    kind: u16,
    request: &[u8],
    mut each: impl FnMut(u16, &[u8]),
) -> io::Result<()> {
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        protocol,
    )?;
    set_socket_timeout(&socket, Timeout::Recv, Some(Duration::from_secs(5)))?;
    // nlmsghdr: length, type, flags, sequence, port.
    let length = u32::try_from(HEADER_BYTES + request.len()).map_err(io::Error::other)?;
    let mut message = Vec::with_capacity(HEADER_BYTES + request.len());
    message.extend_from_slice(&length.to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&(NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(request);
    sendto(
        &socket,
        &message,
        SendFlags::empty(),
        &SocketAddrNetlink::new(0, 0),
    )?;

    let mut buffer = vec![0; 32 * 1024];
    loop {
        let (_, length) = recv(&socket, buffer.as_mut_slice(), RecvFlags::TRUNC)?;
        let messages = buffer
            .get(..length)
            .ok_or_else(|| io::Error::other("a message too long"))?;
        if parse(messages, &mut each)? {
            return Ok(());
        }
    }
}

/// Whether these messages were the last.
fn parse(mut messages: &[u8], each: &mut impl FnMut(u16, &[u8])) -> io::Result<bool> {
    while let Some((kind, payload, rest)) = next_message(messages) {
        match kind {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                let code = payload
                    .first_chunk::<4>()
                    .map_or(0, |code| i32::from_ne_bytes(*code));
                return Err(io::Error::from_raw_os_error(code.saturating_neg()));
            }
            _ => each(kind, payload),
        }
        messages = rest;
    }
    if messages.is_empty() {
        Ok(false)
    } else {
        Err(io::Error::other("a message cut short"))
    }
}

/// Type, payload and what follows.
fn next_message(messages: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = usize::try_from(u32::from_ne_bytes(*messages.first_chunk()?)).ok()?;
    let kind = u16::from_ne_bytes(*messages.get(4..)?.first_chunk()?);
    let payload = messages.get(HEADER_BYTES..length)?;
    Some((
        kind,
        payload,
        messages
            .get(length.next_multiple_of(4)..)
            .unwrap_or_default(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_bytes_make_the_parser_panic() {
        let mut bytes: Vec<u8> = (0..=255).collect();
        for _ in 0..256 {
            bytes.rotate_left(1);
            let _result = parse(&bytes, &mut |_, _| {});
        }
        assert!(parse(&[], &mut |_, _| {}).is_ok_and(|last| !last));
    }

    #[test]
    fn tells_what_the_kernel_refuses() {
        // No such request exists.
        assert!(dump(None, 9999, &[0; 8], |_, _| {}).is_err());
    }
}
