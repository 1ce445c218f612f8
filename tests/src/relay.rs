//! A relay on loopback that counts what passes: the wire of an agent, without asking the kernel or root.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
    task::JoinSet,
};

use crate::fault::{Fault, Outcome};

/// Of an IPv4 header and a UDP header.
const UDP_HEADERS: u64 = 28;
/// No datagram is larger.
const DATAGRAM: usize = 65_535;
/// Read at a time from a TCP connection.
const CHUNK: usize = 16 * 1024;

/// Forwards one port, UDP and TCP, to another, until it is dropped.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    counted: Arc<AtomicU64>,
    _tasks: JoinSet<()>,
}

impl Relay {
    /// Starts it on a free port.
    pub async fn to(target: SocketAddr) -> Outcome<Self> {
        let io = Fault::io("relay");
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(io)?;
        let address = listener.local_addr().map_err(Fault::io("relay"))?;
        let socket = UdpSocket::bind(address).await.map_err(Fault::io("relay"))?;
        let counted = Arc::new(AtomicU64::new(0));
        let mut tasks = JoinSet::new();
        tasks.spawn(datagrams(socket, target, Arc::clone(&counted)));
        tasks.spawn(streams(listener, target, Arc::clone(&counted)));
        Ok(Self {
            address,
            counted,
            _tasks: tasks,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Bytes that passed, both ways: datagrams with their IPv4 and UDP headers, TCP by its payload.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.counted.load(Ordering::Relaxed)
    }
}

async fn datagrams(socket: UdpSocket, target: SocketAddr, counted: Arc<AtomicU64>) {
    let socket = Arc::new(socket);
    let mut clients: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
    let mut answers = JoinSet::new();
    let mut buffer = vec![0; DATAGRAM];
    while let Ok((bytes, from)) = socket.recv_from(&mut buffer).await {
        let upstream = match clients.get(&from) {
            Some(known) => Arc::clone(known),
            None => {
                let Ok(new) = upstream(target).await else {
                    continue;
                };
                let new = Arc::new(new);
                clients.insert(from, Arc::clone(&new));
                answers.spawn(answer(
                    Arc::clone(&new),
                    Arc::clone(&socket),
                    from,
                    Arc::clone(&counted),
                ));
                new
            }
        };
        let datagram = buffer.get(..bytes).unwrap_or_default();
        pass(datagram.len(), &counted);
        // A datagram may be lost on any way.
        drop(upstream.send(datagram).await);
    }
}

async fn upstream(target: SocketAddr) -> std::io::Result<UdpSocket> {
    let socket = UdpSocket::bind("127.0.0.1:0").await?;
    socket.connect(target).await?;
    Ok(socket)
}

async fn answer(
    from: Arc<UdpSocket>,
    socket: Arc<UdpSocket>,
    to: SocketAddr,
    counted: Arc<AtomicU64>,
) {
    let mut buffer = vec![0; DATAGRAM];
    loop {
        // The other side may be away for a while.
        let Ok(bytes) = from.recv(&mut buffer).await else {
            tokio::task::yield_now().await;
            continue;
        };
        let datagram = buffer.get(..bytes).unwrap_or_default();
        pass(datagram.len(), &counted);
        drop(socket.send_to(datagram, to).await);
    }
}

fn pass(bytes: usize, counted: &AtomicU64) {
    let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
    counted.fetch_add(bytes + UDP_HEADERS, Ordering::Relaxed);
}

async fn streams(listener: TcpListener, target: SocketAddr, counted: Arc<AtomicU64>) {
    let mut open = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let counted = Arc::clone(&counted);
        open.spawn(async move {
            let Ok(upstream) = TcpStream::connect(target).await else {
                return;
            };
            let (mut from, mut to) = stream.into_split();
            let (mut back, mut forth) = upstream.into_split();
            // One direction that ends leaves the other to end by itself.
            drop(tokio::join!(
                copy(&mut from, &mut forth, &counted),
                copy(&mut back, &mut to, &counted)
            ));
        });
    }
}

async fn copy(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    counted: &AtomicU64,
) -> std::io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let bytes = from.read(&mut buffer).await?;
        if bytes == 0 {
            return to.shutdown().await;
        }
        counted.fetch_add(u64::try_from(bytes).unwrap_or(u64::MAX), Ordering::Relaxed);
        to.write_all(buffer.get(..bytes).unwrap_or_default())
            .await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn passes_both_and_counts() {
        let far = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let target = far.local_addr().unwrap();
        let listener = TcpListener::bind(target).await.unwrap();
        let relay = Relay::to(target).await.unwrap();

        let near = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        near.send_to(b"ask", relay.address()).await.unwrap();
        let mut buffer = [0; 16];
        let (bytes, from) = far.recv_from(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..bytes], b"ask");
        far.send_to(b"answer", from).await.unwrap();
        let (bytes, from) = near.recv_from(&mut buffer).await.unwrap();
        assert_eq!((&buffer[..bytes], from), (&b"answer"[..], relay.address()));
        assert_eq!(relay.bytes(), 3 + 6 + 2 * UDP_HEADERS);

        let mut stream = TcpStream::connect(relay.address()).await.unwrap();
        let (mut other, _) = listener.accept().await.unwrap();
        stream.write_all(b"hello").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut text = Vec::new();
        other.read_to_end(&mut text).await.unwrap();
        assert_eq!(text, b"hello");
        assert_eq!(relay.bytes(), 3 + 6 + 2 * UDP_HEADERS + 5);
    }
}
