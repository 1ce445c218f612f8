//! The host's time zone: TZif files (RFC 9636) with the rule in their footer for times to come.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

/// The zone `/etc/localtime` holds, read again when the file changes. UTC without one.
#[derive(Debug, Default)]
pub(super) struct Zone {
    /// Device, inode, modification time.
    identity: Option<(u64, u64, i64)>,
    rules: Rules,
}

impl Zone {
    pub(super) fn refresh(&mut self, path: &Path) {
        // The link may point to another zone now: metadata follows it.
        let identity = fs::metadata(path)
            .ok()
            .map(|m| (m.dev(), m.ino(), m.mtime()));
        if identity != self.identity {
            let file = fs::read(path).ok();
            self.rules = file
                .and_then(|bytes| Rules::parse(&bytes))
                .unwrap_or_default();
            self.identity = identity;
        }
    }

    /// The zone's abbreviation and its offset from UTC in seconds, at a time in seconds since the epoch.
    pub(super) fn at(&self, time: i64) -> (String, i32) {
        let local = self.rules.at(time);
        local.map_or_else(
            || ("UTC".to_owned(), 0),
            |local| (local.name.clone(), local.offset),
        )
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct LocalTime {
    name: String,
    offset: i32,
}

#[derive(Debug, Default)]
struct Rules {
    /// When which type of local time began.
    transitions: Vec<(i64, usize)>,
    types: Vec<LocalTime>,
    /// After the last transition.
    rest: Option<Posix>,
}

impl Rules {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        let first = Header::parse(&mut reader)?;
        if first.version < b'2' {
            return Self::parse_block(&mut reader, &first, 4);
        }
        // The first block is the same for readers of 32 bits.
        reader.take(first.block_bytes(4))?;
        let second = Header::parse(&mut reader)?;
        let mut rules = Self::parse_block(&mut reader, &second, 8)?;
        let footer = reader
            .0
            .strip_prefix(b"\n")?
            .split(|byte| *byte == b'\n')
            .next()?;
        rules.rest = std::str::from_utf8(footer).ok().and_then(Posix::parse);
        Some(rules)
    }

    fn parse_block(reader: &mut Reader<'_>, header: &Header, width: usize) -> Option<Self> {
        let times: Vec<i64> = (0..header.times)
            .map(|_| reader.signed(width))
            .collect::<Option<_>>()?;
        let indices = reader.take(header.times)?;
        let raw_types: Vec<(i32, usize)> = (0..header.types)
            .map(|_| {
                let offset = i32::try_from(reader.signed(4)?).ok()?;
                let [_is_dst, name] = reader.take(2)?.try_into().ok()?;
                Some((offset, usize::from(name)))
            })
            .collect::<Option<_>>()?;
        let names = reader.take(header.name_bytes)?;
        reader.take(header.leaps * (width + 4) + header.standards + header.utcs)?;
        let types = raw_types.into_iter().map(|(offset, at)| {
            let name = names.get(at..)?.split(|byte| *byte == 0).next()?;
            Some(LocalTime {
                name: String::from_utf8_lossy(name).into_owned(),
                offset,
            })
        });
        let indices = indices.iter().map(|index| usize::from(*index));
        Some(Self {
            transitions: times.into_iter().zip(indices).collect(),
            types: types.collect::<Option<_>>()?,
            rest: None,
        })
    }

    fn at(&self, time: i64) -> Option<&LocalTime> {
        let before = self.transitions.partition_point(|(from, _)| *from <= time);
        if before == self.transitions.len()
            && let Some(rest) = &self.rest
        {
            return Some(rest.at(time));
        }
        let kind = before
            .checked_sub(1)
            .and_then(|i| self.transitions.get(i))
            .map_or(0, |t| t.1);
        self.types.get(kind)
    }
}

struct Header {
    version: u8,
    utcs: usize,
    standards: usize,
    leaps: usize,
    times: usize,
    types: usize,
    name_bytes: usize,
}

impl Header {
    fn parse(reader: &mut Reader<'_>) -> Option<Self> {
        let [b'T', b'Z', b'i', b'f', version, ..] = reader.take(20)? else {
            return None;
        };
        let mut count = || {
            usize::try_from(reader.signed(4)?)
                .ok()
                .filter(|count| *count < 65_536)
        };
        Some(Self {
            version: *version,
            utcs: count()?,
            standards: count()?,
            leaps: count()?,
            times: count()?,
            types: count()?,
            name_bytes: count()?,
        })
    }

    fn block_bytes(&self, width: usize) -> usize {
        self.times * (width + 1)
            + self.types * 6
            + self.name_bytes
            + self.leaps * (width + 4)
            + self.standards
            + self.utcs
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(taken)
    }

    /// A big-endian integer of 4 or 8 bytes.
    fn signed(&mut self, width: usize) -> Option<i64> {
        let bytes = self.take(width)?;
        match bytes.len() {
            4 => bytes
                .try_into()
                .ok()
                .map(|bytes| i64::from(i32::from_be_bytes(bytes))),
            _ => bytes.try_into().ok().map(i64::from_be_bytes),
        }
    }
}

/// A rule in the manner of POSIX' `TZ`: `CET-1CEST,M3.5.0,M10.5.0/3`.
#[derive(Debug)]
struct Posix {
    standard: LocalTime,
    summer: Option<(LocalTime, Change, Change)>,
}

/// When, within a year, one local time gives way to the other, in the local time that ends.
#[derive(Debug, Clone, Copy)]
struct Change {
    day: Day,
    seconds: i64,
}

#[derive(Debug, Clone, Copy)]
enum Day {
    /// 1 to 365; 29 February is not counted.
    Julian(i64),
    /// 0 to 365.
    OfYear(i64),
    /// Month, week (5 is the last), day of the week from Sunday.
    OfWeek(i64, i64, i64),
}

const DAY: i64 = 86_400;

impl Posix {
    fn parse(text: &str) -> Option<Self> {
        let (name, text) = parse_name(text)?;
        let (offset, text) = parse_time(text)?;
        let standard = LocalTime {
            name,
            offset: i32::try_from(-offset).ok()?,
        };
        if text.is_empty() {
            return Some(Self {
                standard,
                summer: None,
            });
        }
        let (name, text) = parse_name(text)?;
        let (offset, text) = if text.starts_with(',') {
            (offset - 3600, text)
        } else {
            parse_time(text)?
        };
        let summer = LocalTime {
            name,
            offset: i32::try_from(-offset).ok()?,
        };
        let (begin, end) = text.strip_prefix(',')?.split_once(',')?;
        Some(Self {
            standard,
            summer: Some((summer, Change::parse(begin)?, Change::parse(end)?)),
        })
    }

    fn at(&self, time: i64) -> &LocalTime {
        let Some((summer, begin, end)) = &self.summer else {
            return &self.standard;
        };
        let year = year_of(time + i64::from(self.standard.offset));
        let begin = begin.in_year(year) - i64::from(self.standard.offset);
        let end = end.in_year(year) - i64::from(summer.offset);
        // South of the equator summer spans the turn of the year.
        let is_summer = if begin < end {
            (begin..end).contains(&time)
        } else {
            !(end..begin).contains(&time)
        };
        if is_summer { summer } else { &self.standard }
    }
}

fn parse_name(text: &str) -> Option<(String, &str)> {
    if let Some(quoted) = text.strip_prefix('<') {
        let (name, rest) = quoted.split_once('>')?;
        return Some((name.to_owned(), rest));
    }
    let end = text
        .find(|c: char| !c.is_ascii_alphabetic())
        .unwrap_or(text.len());
    let (name, rest) = text.split_at_checked(end)?;
    (!name.is_empty()).then(|| (name.to_owned(), rest))
}

/// `[+-]hh[:mm[:ss]]`, in seconds.
fn parse_time(text: &str) -> Option<(i64, &str)> {
    let end = text
        .find(|c: char| !(c.is_ascii_digit() || matches!(c, ':' | '+' | '-')))
        .unwrap_or(text.len());
    let (time, rest) = text.split_at_checked(end)?;
    let (sign, time) = match time.strip_prefix('-') {
        Some(time) => (-1, time),
        None => (1, time.trim_start_matches('+')),
    };
    let mut seconds = 0;
    for (part, unit) in time.splitn(3, ':').zip([3600, 60, 1]) {
        seconds += i64::from(part.parse::<u16>().ok()?) * unit;
    }
    Some((sign * seconds, rest))
}

impl Change {
    fn parse(text: &str) -> Option<Self> {
        let (day, time) = text
            .split_once('/')
            .map_or((text, None), |(day, time)| (day, Some(time)));
        let seconds = match time {
            Some(time) => parse_time(time)?.0,
            None => 2 * 3600,
        };
        let number = |text: &str| text.parse::<u16>().ok().map(i64::from);
        let day = if let Some(day) = day.strip_prefix('J') {
            Day::Julian(number(day)?)
        } else if let Some(day) = day.strip_prefix('M') {
            let mut parts = day.split('.').map(number);
            let month = parts.next()??;
            if !(1..=12).contains(&month) {
                return None;
            }
            Day::OfWeek(month, parts.next()??, parts.next()??)
        } else {
            Day::OfYear(number(day)?)
        };
        Some(Self { day, seconds })
    }

    /// Seconds since the epoch, as if local time were UTC.
    fn in_year(self, year: i64) -> i64 {
        let first = days_before(year, 1);
        let day = match self.day {
            Day::OfYear(day) => first + day,
            Day::Julian(day) => {
                first + day - 1 + i64::from(day > 59 && days_before(year, 3) - first == 60)
            }
            Day::OfWeek(month, week, weekday) => {
                let first = days_before(year, month);
                let next = if month == 12 {
                    days_before(year + 1, 1)
                } else {
                    days_before(year, month + 1)
                };
                // 1 January 1970 was a Thursday.
                let begin = first + (weekday - (first + 4)).rem_euclid(7);
                let mut day = begin + (week - 1) * 7;
                while day >= next {
                    day -= 7;
                }
                day
            }
        };
        day * DAY + self.seconds
    }
}

/// Days from the epoch to the first of a month, in the Gregorian calendar.
fn days_before(year: i64, month: i64) -> i64 {
    // Years that begin in March end with the day that comes and goes.
    let (year, month) = if month < 3 {
        (year - 1, month + 9)
    } else {
        (year, month - 3)
    };
    let days = 365 * year + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    days + (153 * month + 2) / 5 - 719_468
}

fn year_of(time: i64) -> i64 {
    let day = time.div_euclid(DAY);
    // A first guess that is off by one at most.
    let mut year = 1970 + (day * 400).div_euclid(146_097);
    while days_before(year, 1) > day {
        year -= 1;
    }
    while days_before(year + 1, 1) <= day {
        year += 1;
    }
    year
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_the_calendar() {
        assert_eq!(days_before(1970, 1), 0);
        assert_eq!(days_before(2000, 3), 11_017);
        assert_eq!(days_before(2026, 11), 20_758);
        for year in 1900..2200 {
            assert_eq!(year_of(days_before(year, 1) * DAY), year);
            assert_eq!(year_of(days_before(year, 1) * DAY - 1), year - 1);
        }
    }

    #[test]
    fn follows_posix_rules() {
        let offset = |rule: &str, time: i64| {
            let posix = Posix::parse(rule).unwrap();
            let local = posix.at(time);
            (local.name.clone(), local.offset)
        };
        let berlin = "CET-1CEST,M3.5.0,M10.5.0/3";
        // 2026-03-29T01:00:00Z and 2026-10-25T01:00:00Z.
        assert_eq!(offset(berlin, 1_774_746_000 - 1), ("CET".to_owned(), 3600));
        assert_eq!(offset(berlin, 1_774_746_000), ("CEST".to_owned(), 7200));
        assert_eq!(offset(berlin, 1_792_890_000 - 1), ("CEST".to_owned(), 7200));
        assert_eq!(offset(berlin, 1_792_890_000), ("CET".to_owned(), 3600));
        let sydney = "AEST-10AEDT,M10.1.0,M4.1.0/3";
        assert_eq!(offset(sydney, 1_767_225_600), ("AEDT".to_owned(), 39_600));
        assert_eq!(offset(sydney, 1_782_864_000), ("AEST".to_owned(), 36_000));
        assert_eq!(offset("<+0545>-5:45", 0), ("+0545".to_owned(), 20_700));
        assert_eq!(
            offset("EST5EDT,J60/0,J300/0", 1_782_864_000),
            ("EDT".to_owned(), -14_400)
        );
        assert!(Posix::parse("").is_none() && Posix::parse("CET-1CEST,M13.1.0,M1.1.0").is_none());
    }

    #[test]
    fn agrees_with_date_on_every_zone_at_hand() {
        // `date` reads the same files through the C library.
        for zone in [
            "Europe/Berlin",
            "America/New_York",
            "Asia/Kathmandu",
            "Australia/Sydney",
            "Africa/Casablanca",
        ] {
            let path = Path::new("/usr/share/zoneinfo").join(zone);
            if !path.exists() {
                continue;
            }
            let mut ours = Zone::default();
            ours.refresh(&path);
            for time in [
                0,
                1_600_000_000,
                1_774_746_000,
                1_774_745_999,
                1_795_000_000,
                4_000_000_000,
            ] {
                let output = std::process::Command::new("date")
                    .env("TZ", format!(":{}", path.display()))
                    .args(["-d", &format!("@{time}"), "+%Z %z"])
                    .output()
                    .unwrap();
                let (name, offset) = ours.at(time);
                let sign = if offset < 0 { '-' } else { '+' };
                let (hours, minutes) = (offset.abs() / 3600, offset.abs() / 60 % 60);
                assert_eq!(
                    String::from_utf8(output.stdout).unwrap().trim(),
                    format!("{name} {sign}{hours:02}{minutes:02}"),
                    "{zone} {time}"
                );
            }
        }
    }

    #[test]
    fn is_utc_without_a_file_or_with_a_bad_one() {
        let mut zone = Zone::default();
        zone.refresh(Path::new("/nonexistent"));
        assert_eq!(zone.at(0), ("UTC".to_owned(), 0));
        for length in 0..64 {
            assert!(Rules::parse(&vec![b'T'; length]).is_none());
        }
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("localtime");
        fs::write(&file, b"TZif2\0\0").unwrap();
        zone.refresh(&file);
        assert_eq!(zone.at(0), ("UTC".to_owned(), 0));
    }
}
