//! Counts the bytes of an HTTP/3 stream that are not DATA.
//!
//! The HTTP/3 library keeps every frame but DATA whole in memory before it looks at it, however long it claims
//! to be, and skips unknown frames without end. [`Preface`] reads along with what arrives, follows
//! the frame headers (RFC 9114, section 7.1), and refuses as soon as more than its limit stands before the
//! first byte of DATA, or, after that, in the rest of the stream (trailers). A frame that only
//! announces too much is refused at its header, before any of it is kept. It also knows whether a stream that
//! ends does so between two frames, which the library takes for granted.

/// Frame type of DATA (RFC 9114, section 7.2.1).
const DATA: u64 = 0x00;

/// Follows the frames of one direction of one request stream.
#[derive(Debug)]
pub(crate) struct Preface {
    limit: u64,
    spent: u64,
    /// Bytes of the present frame's header so far.
    header: u64,
    data_seen: bool,
    at: At,
}

/// More than the limit that was not DATA.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("more than {limit} bytes outside of DATA frames")]
pub(crate) struct Exceeded {
    pub(crate) limit: u64,
}

#[derive(Debug)]
enum At {
    Type(Varint),
    Length { kind: u64, value: Varint },
    Payload { left: u64 },
}

impl Preface {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            limit: u64::try_from(limit).unwrap_or(u64::MAX),
            spent: 0,
            header: 0,
            data_seen: false,
            at: At::Type(Varint::default()),
        }
    }

    /// Takes note of the next bytes of the stream, in order.
    pub(crate) fn observe(&mut self, mut bytes: &[u8]) -> Result<(), Exceeded> {
        while let Some((&first, rest)) = bytes.split_first() {
            match &mut self.at {
                At::Type(varint) => {
                    bytes = rest;
                    self.header += 1;
                    if let Some(kind) = varint.push(first) {
                        self.at = At::Length {
                            kind,
                            value: Varint::default(),
                        };
                    }
                }
                At::Length { kind, value } => {
                    bytes = rest;
                    self.header += 1;
                    let kind = *kind;
                    if let Some(length) = value.push(first) {
                        self.begin(kind, length)?;
                    }
                }
                At::Payload { left } => {
                    let step = bytes
                        .len()
                        .min(usize::try_from(*left).unwrap_or(usize::MAX));
                    bytes = bytes.get(step..).unwrap_or_default();
                    *left = left.saturating_sub(u64::try_from(step).unwrap_or(u64::MAX));
                    if *left == 0 {
                        self.at = At::Type(Varint::default());
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether the stream may end here: no frame is begun and not whole.
    pub(crate) fn is_between_frames(&self) -> bool {
        matches!(&self.at, At::Type(varint) if varint.missing.is_none())
    }

    fn begin(&mut self, kind: u64, length: u64) -> Result<(), Exceeded> {
        let header = std::mem::take(&mut self.header);
        if kind == DATA && length > 0 {
            if !self.data_seen {
                self.data_seen = true;
                self.spent = 0;
            }
        } else {
            // An empty DATA frame carries nothing either: endless ones are a flood like any other.
            let payload = if kind == DATA { 0 } else { length };
            self.spent = self.spent.saturating_add(header).saturating_add(payload);
            if self.spent > self.limit {
                return Err(Exceeded { limit: self.limit });
            }
        }
        self.at = match length {
            0 => At::Type(Varint::default()),
            left => At::Payload { left },
        };
        Ok(())
    }
}

/// A QUIC variable-length integer (RFC 9000, section 16), byte by byte.
#[derive(Debug, Default)]
struct Varint {
    value: u64,
    missing: Option<u8>,
}

impl Varint {
    /// The integer, once its last byte is in.
    fn push(&mut self, byte: u8) -> Option<u64> {
        let missing = match self.missing {
            None => {
                self.value = u64::from(byte & 0x3f);
                (1_u8 << (byte >> 6)) - 1
            }
            Some(missing) => {
                self.value = (self.value << 8) | u64::from(byte);
                missing - 1
            }
        };
        self.missing = Some(missing);
        (missing == 0).then_some(self.value)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn varint(value: u64) -> Vec<u8> {
        let bytes = value.to_be_bytes();
        match value {
            0..=0x3f => vec![bytes[7]],
            0x40..=0x3fff => vec![bytes[6] | 0x40, bytes[7]],
            0x4000..=0x3fff_ffff => {
                vec![bytes[4] | 0x80, bytes[5], bytes[6], bytes[7]]
            }
            _ => {
                let mut all = bytes.to_vec();
                all[0] |= 0xc0;
                all
            }
        }
    }

    fn frame(kind: u64, payload: usize) -> Vec<u8> {
        let mut bytes = varint(kind);
        bytes.extend(varint(payload as u64));
        bytes.resize(bytes.len() + payload, 7);
        bytes
    }

    fn observe(bytes: &[u8], piece: usize) -> Result<(), Exceeded> {
        let mut preface = Preface::new(1000);
        bytes
            .chunks(piece.max(1))
            .try_for_each(|piece| preface.observe(piece))
    }

    #[test]
    fn a_call_with_headers_data_and_trailers_passes() {
        let call = [frame(1, 900), frame(0, 100_000), frame(0, 5), frame(1, 900)].concat();
        assert_eq!(observe(&call, 7), Ok(()));
    }

    #[test]
    fn an_oversized_header_frame_is_refused_at_its_length() {
        let announced = [varint(1), varint(1 << 40)].concat();
        assert_eq!(observe(&announced, 1), Err(Exceeded { limit: 1000 }));
    }

    #[test]
    fn a_flood_of_unknown_frames_is_refused_before_and_after_data() {
        let flood = frame(0x21, 30).repeat(40);
        assert_eq!(observe(&flood, 64), Err(Exceeded { limit: 1000 }));
        let late = [frame(1, 10), frame(0, 10), flood].concat();
        assert_eq!(observe(&late, 64), Err(Exceeded { limit: 1000 }));
        assert_eq!(
            observe(&frame(0, 0).repeat(600), 64),
            Err(Exceeded { limit: 1000 })
        );
    }

    #[test]
    fn one_byte_of_data_buys_no_second_preface() {
        let call = [frame(0x21, 900), frame(0, 1)].concat().repeat(3);
        assert_eq!(observe(&call, 64), Err(Exceeded { limit: 1000 }));
    }

    #[test]
    fn a_stream_may_end_between_frames_alone() {
        let call = [frame(1, 3), frame(0, 100), frame(0, 0), frame(1, 2)];
        let whole = call.concat();
        let mut ends = vec![0];
        for frame in &call {
            ends.push(ends.last().unwrap() + frame.len());
        }
        for cut in 0..=whole.len() {
            let mut preface = Preface::new(1000);
            preface.observe(&whole[..cut]).unwrap();
            assert_eq!(preface.is_between_frames(), ends.contains(&cut), "{cut}");
        }
    }

    proptest! {
        #[test]
        fn decides_alike_however_the_bytes_are_cut(
            frames in prop::collection::vec((0_u64..0x50, 0_usize..400), 0..20),
            piece in 1_usize..100,
        ) {
            let bytes: Vec<u8> =
                frames.iter().flat_map(|(kind, length)| frame(*kind, *length)).collect();
            prop_assert_eq!(observe(&bytes, piece), observe(&bytes, bytes.len()));
            let (mut spent, mut data, mut refused) = (0, false, false);
            for (kind, length) in frames {
                if kind == 0 && length > 0 {
                    spent = if data { spent } else { 0 };
                    data = true;
                } else {
                    spent += frame(kind, length).len();
                    refused |= spent > 1000;
                }
            }
            prop_assert_eq!(observe(&bytes, piece).is_err(), refused);
        }

        #[test]
        fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300), piece in 1_usize..20) {
            observe(&bytes, piece).ok();
        }
    }
}
