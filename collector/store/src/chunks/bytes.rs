//! Numbers in bytes: LEB128, signed ones in zigzag. Reading checks every bound.

use super::ChunkError;

/// Small amounts, positive or negative, become small numbers.
pub(super) fn zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)).cast_unsigned()
}

pub(super) fn unzigzag(number: u64) -> i64 {
    (number >> 1).cast_signed() ^ -((number & 1).cast_signed())
}

pub(super) fn low_byte(number: u64) -> u8 {
    let [low, ..] = number.to_le_bytes();
    low
}

pub(super) fn put(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(low_byte(number) | 0x80);
        number >>= 7;
    }
    out.push(low_byte(number));
}

pub(super) fn put_signed(out: &mut Vec<u8>, number: i64) {
    put(out, zigzag(number));
}

pub(super) fn put_size(out: &mut Vec<u8>, size: usize) {
    put(out, u64::try_from(size).unwrap_or(u64::MAX));
}

/// What is left to read.
#[derive(Debug)]
pub(super) struct Bytes<'a>(pub(super) &'a [u8]);

impl<'a> Bytes<'a> {
    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8], ChunkError> {
        let (taken, rest) = self
            .0
            .split_at_checked(count)
            .ok_or(ChunkError::Damaged("it ends too early"))?;
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn byte(&mut self) -> Result<u8, ChunkError> {
        let (byte, rest) = self
            .0
            .split_first()
            .ok_or(ChunkError::Damaged("it ends too early"))?;
        self.0 = rest;
        Ok(*byte)
    }

    pub(super) fn number(&mut self) -> Result<u64, ChunkError> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let part = u64::from(byte & 0x7f);
            if shift == 63 && part > 1 {
                break;
            }
            number |= part << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(ChunkError::Damaged("a number is too long"))
    }

    pub(super) fn signed(&mut self) -> Result<i64, ChunkError> {
        self.number().map(unzigzag)
    }

    /// A number that says how much of something there is.
    pub(super) fn size(&mut self, what: &'static str, limit: usize) -> Result<usize, ChunkError> {
        let found = self.number()?;
        usize::try_from(found)
            .ok()
            .filter(|size| *size <= limit)
            .ok_or(ChunkError::TooMany { what, found, limit })
    }
}
