//! Windows, timeouts and keys of the transports.

use std::{sync::Arc, time::Duration};

use nexus_proto::limits;
use quinn::{IdleTimeout, TransportConfig, VarInt};

/// How much may be under way. A receive window is memory a peer can make us hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Windows {
    /// Bytes of one call, received and not yet read.
    pub stream_bytes: u32,
    /// Bytes of one connection, received and not yet read.
    pub connection_bytes: u32,
    /// Bytes of one connection, sent and not yet acknowledged.
    pub send_bytes: u32,
}

impl Windows {
    /// Small: jobs come in, records go out.
    #[must_use]
    pub fn agent() -> Self {
        Self {
            stream_bytes: 128 << 10,
            connection_bytes: 256 << 10,
            send_bytes: 256 << 10,
        }
    }

    /// For a port with many connections.
    #[must_use]
    pub fn collector() -> Self {
        Self {
            stream_bytes: 256 << 10,
            connection_bytes: 1 << 20,
            send_bytes: 512 << 10,
        }
    }

    /// For one operator's answers.
    #[must_use]
    pub fn operator() -> Self {
        Self {
            stream_bytes: 1 << 20,
            connection_bytes: 4 << 20,
            send_bytes: 1 << 20,
        }
    }
}

/// A TCP peer that has not answered a keep-alive by then is gone.
pub(crate) const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(15);

/// Only the side that dialled keeps a connection alive. Where its packets no longer come through, those of the
/// other side would keep putting off its own question, and with it the answer that there is none.
pub(crate) fn quic_transport(
    windows: Windows,
    peer_calls: u32,
    keep_alive: Option<Duration>,
) -> Arc<TransportConfig> {
    Arc::new(quic_config(windows, peer_calls, keep_alive))
}

fn quic_config(windows: Windows, peer_calls: u32, keep_alive: Option<Duration>) -> TransportConfig {
    let mut config = TransportConfig::default();
    let idle = IdleTimeout::try_from(limits::IDLE_TIMEOUT)
        .expect("a minute in milliseconds is below 2^62");
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(peer_calls))
        .max_concurrent_uni_streams(VarInt::from_u32(limits::UNI_STREAMS))
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(keep_alive)
        .stream_receive_window(VarInt::from_u32(windows.stream_bytes))
        .receive_window(VarInt::from_u32(windows.connection_bytes))
        .send_window(u64::from(windows.send_bytes))
        .datagram_receive_buffer_size(None);
    config
}

/// Of a port with thousands of connections. What it says fits into one packet nearly always: no connection keeps room for
/// ten that go out together, and none is asked how large a packet its path takes.
pub(crate) fn quic_port_transport(windows: Windows, peer_calls: u32) -> Arc<TransportConfig> {
    let mut config = quic_config(windows, peer_calls, None);
    config
        .enable_segmentation_offload(false)
        .mtu_discovery_config(None);
    Arc::new(config)
}

/// Keys of one collector that outlive its restarts: with them its peers learn of a restart by the answer
/// to their next packet (RFC 9000, section 10.3) instead of by silence.
#[derive(Clone)]
pub struct ResetKeys {
    stateless_reset: [u8; 64],
    connection_id: u64,
}

impl ResetKeys {
    /// From secret bytes kept with the collector's state.
    #[must_use]
    pub fn new(stateless_reset: [u8; 64], connection_id: [u8; 64]) -> Self {
        let mut first = [0; 8];
        first
            .iter_mut()
            .zip(connection_id)
            .for_each(|(to, from)| *to = from);
        Self {
            stateless_reset,
            connection_id: u64::from_be_bytes(first),
        }
    }

    pub(crate) fn endpoint_config(&self) -> quinn::EndpointConfig {
        use aws_lc_rs::hmac;
        let reset = hmac::Key::new(hmac::HMAC_SHA256, &self.stateless_reset);
        let mut config = quinn::EndpointConfig::new(Arc::new(reset));
        let key = self.connection_id;
        config
            .cid_generator(move || {
                Box::new(quinn_proto::HashedConnectionIdGenerator::from_key(key))
            })
            // After a restart every agent sends such a packet.
            .min_reset_interval(Duration::from_millis(1));
        config
    }
}
