//! Where samples lie: the sample table of a whole file and the runs of a fragment.

use super::boxes::{Boxes, Fields, find, put_full, put_u32, put_u64};
use super::movie::Track;
use crate::encode::ContainerProblem as Problem;

/// Samples a chunk: a second of packets of 20 ms.
const CHUNK: u32 = 50;

/// No fragment has more samples than this.
const MOST_SAMPLES: usize = 1 << 20;

/// Sizes and durations of all samples of a file, in memory: 4 bytes a sample.
#[derive(Clone, Debug, Default)]
pub(super) struct Samples {
    pub sizes: Vec<u32>,
    /// Runs of samples that last equally long.
    pub durations: Vec<(u32, u32)>,
    /// The sums.
    pub duration: u64,
    pub bytes: u64,
    /// The shortest packet.
    pub shortest: u32,
}

impl Samples {
    pub(super) fn count(&self) -> u32 {
        self.sizes.len() as u32
    }

    pub(super) fn push(&mut self, size: u32, duration: u32) {
        self.shortest = if self.sizes.is_empty() { duration } else { self.shortest.min(duration) };
        self.sizes.push(size);
        self.bytes += u64::from(size);
        self.push_duration(duration);
    }

    fn push_duration(&mut self, duration: u32) {
        self.duration += u64::from(duration);
        match self.durations.last_mut().filter(|(_, last)| *last == duration) {
            Some((count, _)) => *count += 1,
            None => self.durations.push((1, duration)),
        }
    }

    fn pop_duration(&mut self) {
        if let Some((count, duration)) = self.durations.last_mut() {
            *count -= 1;
            self.duration -= u64::from(*duration);
            if *count == 0 {
                self.durations.pop();
            }
        }
    }

    /// Ends all samples at `end`: those behind it are removed, and the last one may become shorter.
    pub(super) fn cut(&mut self, end: u64) {
        while let Some((_, duration)) = self.durations.last().copied() {
            let start = self.duration - u64::from(duration);
            if start < end {
                let shorter = end - start;
                if shorter < u64::from(duration) {
                    self.pop_duration();
                    self.push_duration(shorter as u32);
                }
                return;
            }
            self.pop_duration();
            self.bytes -= self.sizes.pop().map_or(0, u64::from);
        }
    }

    /// Appends the boxes of the sample table, for samples that lie one after the other from `data` on.
    pub(super) fn write(&self, data: u64, out: &mut Vec<u8>) {
        let (full, rest) = (self.count() / CHUNK, self.count() % CHUNK);
        let mut groups = Vec::new();
        if full > 0 {
            groups.push((1, CHUNK));
        }
        if rest > 0 {
            groups.push((full + 1, rest));
        }
        put_full(b"stts", 0, 0, out, |out| {
            put_u32(self.durations.len() as u32, out);
            for (count, duration) in &self.durations {
                put_u32(*count, out);
                put_u32(*duration, out);
            }
        });
        put_full(b"stsc", 0, 0, out, |out| {
            put_u32(groups.len() as u32, out);
            for (first, count) in groups {
                [first, count, 1].into_iter().for_each(|value| put_u32(value, out));
            }
        });
        put_full(b"stsz", 0, 0, out, |out| {
            put_u32(0, out);
            put_u32(self.count(), out);
            self.sizes.iter().for_each(|size| put_u32(*size, out));
        });
        // The kind of box must not depend on `data`, which depends on the boxes' length.
        let wide = self.is_wide();
        put_full(if wide { b"co64" } else { b"stco" }, 0, 0, out, |out| {
            put_u32(self.sizes.chunks(CHUNK as usize).len() as u32, out);
            let mut at = data;
            for chunk in self.sizes.chunks(CHUNK as usize) {
                if wide {
                    put_u64(at, out)
                } else {
                    put_u32(at as u32, out)
                }
                at += chunk.iter().map(|size| u64::from(*size)).sum::<u64>();
            }
        });
    }

    /// Whether places may not fit into 32 bits; what comes before the samples is less than they are.
    pub(super) fn is_wide(&self) -> bool {
        self.bytes >= 1 << 31
    }
}

/// One sample of a file that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sample {
    pub offset: u64,
    pub size: u32,
    pub duration: u32,
}

/// The sample table of a file that is read, sample after sample.
#[derive(Clone, Debug, Default)]
pub(super) struct Table {
    durations: Vec<u8>,
    chunks: Vec<u8>,
    sizes: Vec<u8>,
    offsets: Vec<u8>,
    wide: bool,
    size: u32,
    count: u32,
    /// The next entries of the first two.
    durations_at: usize,
    chunks_at: usize,
    /// The next sample, the chunk it is in (from 0), its place in there and its offset.
    next: u32,
    chunk: u32,
    in_chunk: u32,
    offset: Option<u64>,
    per_chunk: u32,
    run: u32,
    duration: u32,
}

impl Table {
    /// Reads the body of an `stbl` box.
    pub(super) fn read(stbl: &[u8]) -> Option<Self> {
        let entries = |kind: &[u8; 4]| find(stbl, &[kind]).and_then(|body| body.get(8..)).map(<[u8]>::to_vec);
        let mut fields = Fields(find(stbl, &[b"stsz"])?);
        fields.full()?;
        let (size, count) = (fields.u32()?, fields.u32()?);
        let narrow = entries(b"stco");
        Some(Self {
            durations: entries(b"stts")?,
            chunks: entries(b"stsc")?,
            sizes: fields.0.to_vec(),
            wide: narrow.is_none(),
            offsets: match narrow {
                Some(offsets) => offsets,
                None => entries(b"co64")?,
            },
            size,
            count,
            ..Self::default()
        })
    }

    /// Samples still to come.
    pub(super) fn left(&self) -> u32 {
        self.count - self.next
    }

    /// The next sample, or `None` at the end and where the table is malformed.
    pub(super) fn next(&mut self) -> Option<Sample> {
        if self.left() == 0 {
            return None;
        }
        let size = match self.size {
            0 => Fields(self.sizes.get(self.next as usize * 4..)?).u32()?,
            size => size,
        };
        let offset = self.place()?;
        let duration = self.next_duration()?;
        self.offset = Some(offset.checked_add(u64::from(size))?);
        self.in_chunk += 1;
        self.next += 1;
        (size > 0).then_some(Sample { offset, size, duration })
    }

    /// Where the next sample begins.
    fn place(&mut self) -> Option<u64> {
        if let (Some(offset), true) = (self.offset, self.in_chunk < self.per_chunk) {
            return Some(offset);
        }
        if self.offset.is_some() {
            self.chunk += 1;
        }
        self.in_chunk = 0;
        // Chunks are counted from 1.
        while let Some((_, count)) = pair(&self.chunks, self.chunks_at).filter(|(first, _)| *first <= self.chunk + 1) {
            self.per_chunk = count;
            self.chunks_at += 12;
        }
        if self.per_chunk == 0 {
            return None;
        }
        let at = self.chunk as usize;
        if self.wide {
            Fields(self.offsets.get(at.checked_mul(8)?..)?).u64()
        } else {
            Fields(self.offsets.get(at * 4..)?).u32().map(u64::from)
        }
    }

    fn next_duration(&mut self) -> Option<u32> {
        if self.run == 0 {
            (self.run, self.duration) = pair(&self.durations, self.durations_at)?;
            self.durations_at += 8;
            self.run = self.run.max(1);
        }
        self.run -= 1;
        Some(self.duration)
    }
}

/// Two words at a place in a table.
fn pair(table: &[u8], at: usize) -> Option<(u32, u32)> {
    let mut fields = Fields(table.get(at..)?);
    Some((fields.u32()?, fields.u32()?))
}

/// The samples of a fragment.
#[derive(Clone, Debug, Default)]
pub(super) struct Fragment {
    pub samples: Vec<Sample>,
    /// The time of the first of them.
    pub time: Option<u64>,
}

/// Reads the body of a `moof` box that begins at `offset` in the file.
///
/// # Errors
/// The problem that keeps its samples from being found.
pub(super) fn read_fragment(moof: &[u8], offset: u64, track: &Track) -> Result<Fragment, Problem> {
    let mut fragment = Fragment::default();
    // Without a place of its own, a track's data follow the data of the track before.
    let mut place = offset;
    let malformed = Problem::Malformed { part: "moof", offset };
    for (_, traf) in Boxes(moof).filter(|(kind, _)| kind == b"traf") {
        read_track_fragment(traf, offset, &mut place, track, &mut fragment).ok_or(malformed.clone())?;
    }
    if fragment.samples.len() > MOST_SAMPLES { Err(malformed) } else { Ok(fragment) }
}

fn read_track_fragment(traf: &[u8], moof: u64, place: &mut u64, track: &Track, fragment: &mut Fragment) -> Option<()> {
    const BASE_IS_MOOF: u32 = 0x02_0000;
    let mut fields = Fields(find(traf, &[b"tfhd"])?);
    let (_, flags) = fields.full()?;
    let ours = fields.u32()? == track.id;
    let base = match flags {
        flags if flags & 1 != 0 => fields.u64()?,
        flags if flags & BASE_IS_MOOF != 0 => moof,
        _ => *place,
    };
    if flags & 2 != 0 {
        fields.u32()?;
    }
    let default_duration = if flags & 8 != 0 { fields.u32()? } else { track.default_duration };
    let default_size = if flags & 0x10 != 0 { fields.u32()? } else { track.default_size };
    if let (true, Some(tfdt)) = (ours, find(traf, &[b"tfdt"])) {
        let mut fields = Fields(tfdt);
        let (version, _) = fields.full()?;
        fragment.time = fragment.time.or(Some(fields.wide(version)?));
    }
    let mut at = base;
    for (_, trun) in Boxes(traf).filter(|(kind, _)| kind == b"trun") {
        let mut fields = Fields(trun);
        let (_, flags) = fields.full()?;
        let count = fields.u32()?;
        if flags & 1 != 0 {
            at = base.checked_add_signed(i64::from(fields.u32()? as i32))?;
        }
        if flags & 4 != 0 {
            fields.u32()?;
        }
        // What each sample says about itself bounds how many there are, and else this does.
        if flags & 0x300 == 0 && count > 1 << 16 || fragment.samples.len() > MOST_SAMPLES {
            return None;
        }
        for _ in 0..count {
            let duration = if flags & 0x100 != 0 { fields.u32()? } else { default_duration };
            let size = if flags & 0x200 != 0 { fields.u32()? } else { default_size };
            fields.skip((flags & 0xc00).count_ones() as usize * 4)?;
            if ours && size > 0 {
                fragment.samples.push(Sample { offset: at, size, duration });
            }
            at = at.checked_add(u64::from(size))?;
        }
    }
    *place = at;
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_read_as_it_was_written() {
        for count in [0, 1, 49, 50, 51, 230] {
            let mut samples = Samples::default();
            (0..count).for_each(|n| samples.push(n % 7 + 1, if n % 60 < 30 { 960 } else { 480 }));
            let mut bytes = Vec::new();
            samples.write(1000, &mut bytes);
            let mut table = Table::read(&bytes).unwrap();
            let mut at = 1000;
            for n in 0..count {
                let expected = Sample { offset: at, size: n % 7 + 1, duration: if n % 60 < 30 { 960 } else { 480 } };
                assert_eq!(table.next(), Some(expected), "{n} of {count}");
                at += u64::from(expected.size);
            }
            assert_eq!((table.next(), at - 1000), (None, samples.bytes));
        }
    }

    #[test]
    fn a_cut_removes_and_shortens() {
        let mut samples = Samples::default();
        (0..4).for_each(|_| samples.push(10, 960));
        samples.cut(2000);
        assert_eq!((samples.count(), samples.bytes, samples.duration), (3, 30, 2000));
        assert_eq!(samples.durations, [(2, 960), (1, 80)]);
        samples.cut(1920);
        assert_eq!((samples.count(), samples.durations.as_slice()), (2, &[(2, 960)][..]));
    }
}
