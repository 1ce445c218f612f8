//! How messages become bytes and back: prost's encoding, in buffers that begin small.
//!
//! A call keeps a buffer each way for as long as it lives. A session is several calls which mostly carry a few hundred
//! bytes, and a collector has thousands of sessions: the usual 8 KiB a buffer would be most of what one costs.
//! A buffer grows with the messages that need more.

use std::marker::PhantomData;

use prost::Message;
use tonic::codec::BufferSettings;
use tonic_prost::{ProstDecoder, ProstEncoder};

/// Bytes a buffer begins with: an ack fits, a report makes it grow once.
const BUFFER_BYTES: usize = 256;
/// Messages that are ready are gathered up to about so many bytes before they are handed to the transport.
const GATHERED_BYTES: usize = 32 * 1024;

/// The codec of every service, in both directions.
#[derive(Debug, Clone)]
pub struct Codec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for Codec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> tonic::codec::Codec for Codec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::new(settings())
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstDecoder::new(settings())
    }
}

fn settings() -> BufferSettings {
    BufferSettings::new(BUFFER_BYTES, GATHERED_BYTES)
}

#[cfg(test)]
mod tests {
    use crate::agent::v1::{AgentFrame, CollectorFrame};

    #[test]
    fn frames_are_small_enough_to_keep_room_for_dozens() {
        assert!(size_of::<AgentFrame>() <= 64);
        assert!(size_of::<CollectorFrame>() <= 64);
    }
}
