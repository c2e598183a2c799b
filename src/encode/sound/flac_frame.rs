//! One frame of FLAC (RFC 9639 §9): fixed and linear prediction, Rice coding. Only sums, products and rounding, so every
//! machine writes the same bytes.

use super::pcm::Depth;

/// Samples a channel in each frame but the last: 85 ms.
pub(super) const BLOCK: usize = 4096;
/// The order of the linear prediction, and the bits of one of its coefficients.
const ORDER: usize = 8;
const PRECISION: u32 = 14;
/// The highest order of the fixed predictors.
const FIXED_ORDERS: usize = 4;
/// At most 2⁸ partitions of the residual.
const PARTITION_ORDERS: u32 = 8;
const SIDE_LEFT: u8 = 8;
const SIDE_RIGHT: u8 = 9;
const MID_SIDE: u8 = 10;

/// Appends a frame of interleaved samples: of [`BLOCK`] a channel, or fewer for the last.
pub(super) fn write(block: &[i32], channels: usize, depth: Depth, number: u32, out: &mut Vec<u8>) {
    let count = block.len() / channels;
    let bits = u32::from(depth.bits());
    let channel = |at: usize| block.iter().skip(at).step_by(channels).copied().collect::<Vec<i32>>();
    let (assignment, subframes) = if channels == 1 {
        (0, vec![Subframe::best(channel(0), bits)])
    } else {
        best_pair(channel(0), channel(1), bits)
    };
    let start = out.len();
    let size_code = match depth {
        Depth::Bits16 => 4,
        Depth::Bits24 => 6,
    };
    // Blocks of a fixed size: 4096, or what stands in 16 bits; 48 kHz.
    let block_code = if count == BLOCK { 0xc0 } else { 0x70 };
    out.extend([0xff, 0xf8, block_code | 0x0a, assignment << 4 | size_code << 1]);
    push_coded_number(number, out);
    if count != BLOCK {
        out.extend((count as u16 - 1).to_be_bytes());
    }
    out.push(crc8(&out[start..]));
    let mut writer = BitWriter { out, held: 0, bits: 0 };
    subframes.iter().for_each(|subframe| subframe.write(&mut writer));
    writer.align();
    let sum = crc16(&out[start..]);
    out.extend(sum.to_be_bytes());
}

/// How two channels are best told: as they are, or one of them as the difference of both.
fn best_pair(left: Vec<i32>, right: Vec<i32>, bits: u32) -> (u8, Vec<Subframe>) {
    let side = left.iter().zip(&right).map(|(l, r)| l - r).collect();
    let mid = left.iter().zip(&right).map(|(l, r)| (l + r) >> 1).collect();
    let [left, right, mid] = [left, right, mid].map(|samples| Subframe::best(samples, bits));
    let side = Subframe::best(side, bits + 1);
    let (_, assignment) = [
        (left.bits + right.bits, 1),
        (left.bits + side.bits, SIDE_LEFT),
        (side.bits + right.bits, SIDE_RIGHT),
        (mid.bits + side.bits, MID_SIDE),
    ]
    .into_iter()
    .min()
    .unwrap_or_default();
    let pair = match assignment {
        SIDE_LEFT => vec![left, side],
        SIDE_RIGHT => vec![side, right],
        MID_SIDE => vec![mid, side],
        _ => vec![left, right],
    };
    (assignment, pair)
}

/// One channel of a frame.
struct Subframe {
    samples: Vec<i32>,
    /// Bits of a sample.
    depth: u32,
    kind: Kind,
    /// Bits it takes at most.
    bits: u64,
}

enum Kind {
    Constant,
    Verbatim,
    Predicted { order: usize, by: Option<Predictor>, residual: Vec<i32>, rice: Rice },
}

/// A linear predictor: the sum of the products with the samples before, the latest first, shifted to the right.
struct Predictor {
    coefficients: [i32; ORDER],
    shift: u32,
}

/// How a residual is coded.
struct Rice {
    partition_order: u32,
    parameters: Vec<u32>,
    /// Bits it takes at most.
    bits: u64,
}

impl Subframe {
    /// The shortest way to tell `samples`, of which there is at least one.
    fn best(samples: Vec<i32>, depth: u32) -> Self {
        let sample_bits = u64::from(depth);
        if samples.iter().all(|sample| *sample == samples[0]) {
            return Self { samples, depth, kind: Kind::Constant, bits: 8 + sample_bits };
        }
        let mut best = (8 + sample_bits * samples.len() as u64, Kind::Verbatim);
        let (order, residual) = fixed(&samples);
        let rice = Rice::best(&residual, samples.len(), order);
        let bits = 8 + sample_bits * order as u64 + rice.bits;
        if bits < best.0 {
            best = (bits, Kind::Predicted { order, by: None, residual, rice });
        }
        if let Some((predictor, residual)) = linear(&samples) {
            let rice = Rice::best(&residual, samples.len(), ORDER);
            let bits = 8 + 9 + (sample_bits + u64::from(PRECISION)) * ORDER as u64 + rice.bits;
            if bits < best.0 {
                best = (bits, Kind::Predicted { order: ORDER, by: Some(predictor), residual, rice });
            }
        }
        Self { samples, depth, kind: best.1, bits: best.0 }
    }

    fn write(&self, out: &mut BitWriter<'_>) {
        match &self.kind {
            Kind::Constant => {
                out.push(0, 8);
                out.push_signed(self.samples[0], self.depth);
            }
            Kind::Verbatim => {
                out.push(1 << 1, 8);
                self.samples.iter().for_each(|sample| out.push_signed(*sample, self.depth));
            }
            Kind::Predicted { order, by, residual, rice } => {
                let kind = if by.is_some() { 0x20 | (*order as u32 - 1) } else { 0x08 | *order as u32 };
                out.push(kind << 1, 8);
                self.samples[..*order].iter().for_each(|sample| out.push_signed(*sample, self.depth));
                if let Some(predictor) = by {
                    out.push(PRECISION - 1, 4);
                    out.push(predictor.shift, 5);
                    predictor.coefficients.iter().for_each(|value| out.push_signed(*value, PRECISION));
                }
                rice.write(residual, self.samples.len(), *order, out);
            }
        }
    }
}

/// The fixed predictor that leaves least, and what it leaves.
fn fixed(samples: &[i32]) -> (usize, Vec<i32>) {
    let size = |residual: &[i32]| residual.iter().map(|value| u64::from(value.unsigned_abs())).sum::<u64>();
    let mut best = (0, samples.to_vec());
    let mut least = size(samples);
    let mut last = samples.to_vec();
    for order in 1..=FIXED_ORDERS.min(samples.len() - 1) {
        // 25 bits at most, and one more with each order.
        last = last.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let size = size(&last);
        if size < least {
            least = size;
            best = (order, last.clone());
        }
    }
    best
}

/// A linear predictor from the samples' autocorrelation, and what it leaves; `None` where there is none of use.
fn linear(samples: &[i32]) -> Option<(Predictor, Vec<i32>)> {
    if samples.len() <= 4 * ORDER {
        return None;
    }
    let middle = (samples.len() - 1) as f64 / 2.0;
    let windowed: Vec<f64> = samples
        .iter()
        .enumerate()
        .map(|(n, sample)| {
            let from_middle = (n as f64 - middle) / (middle + 1.0);
            f64::from(*sample) * (1.0 - from_middle * from_middle)
        })
        .collect();
    let likeness: [f64; ORDER + 1] =
        std::array::from_fn(|lag| windowed[lag..].iter().zip(&windowed).map(|(a, b)| a * b).sum());
    let predictor = quantise(&levinson(&likeness)?)?;
    let residual = (ORDER..samples.len())
        .map(|n| {
            let products = predictor.coefficients.iter().zip(samples[n - ORDER..n].iter().rev());
            let sum: i64 = products.map(|(a, b)| i64::from(*a) * i64::from(*b)).sum();
            let left = i64::from(samples[n]) - (sum >> predictor.shift);
            i32::try_from(left).ok().filter(|left| *left != i32::MIN)
        })
        .collect::<Option<Vec<i32>>>()?;
    Some((predictor, residual))
}

/// Levinson's recursion.
fn levinson(likeness: &[f64; ORDER + 1]) -> Option<[f64; ORDER]> {
    let mut coefficients = [0.0; ORDER];
    let mut error = likeness[0];
    for order in 0..ORDER {
        if error <= 0.0 {
            return None;
        }
        let known: f64 = (0..order).map(|n| coefficients[n] * likeness[order - n]).sum();
        let reflection = (likeness[order + 1] - known) / error;
        let before = coefficients;
        for n in 0..order {
            coefficients[n] -= reflection * before[order - 1 - n];
        }
        coefficients[order] = reflection;
        error *= 1.0 - reflection * reflection;
    }
    Some(coefficients)
}

fn quantise(coefficients: &[f64; ORDER]) -> Option<Predictor> {
    let limit = f64::from((1 << (PRECISION - 1)) - 1);
    let largest = coefficients.iter().fold(0.0f64, |most, value| most.max(value.abs()));
    let shift = (0..=15).rev().find(|shift| largest * f64::from(1u32 << shift) < limit)?;
    // What one coefficient loses, the next makes up for.
    let mut lost = 0.0;
    let coefficients = coefficients.map(|value| {
        let exact = value * f64::from(1u32 << shift) + lost;
        let whole = exact.round().clamp(-limit, limit);
        lost = exact - whole;
        whole as i32
    });
    Some(Predictor { coefficients, shift })
}

impl Rice {
    /// The partitions of the residual of a block of `count` samples, of which the first `order` have none.
    fn best(residual: &[i32], count: usize, order: usize) -> Self {
        let finest = (0..=PARTITION_ORDERS)
            .rev()
            .find(|partitions| count.is_multiple_of(1 << partitions) && count >> partitions > order)
            .unwrap_or(0);
        let mut sums: Vec<u64> = partitions(residual, count, order, finest)
            .map(|values| values.iter().map(|value| u64::from(folded(*value))).sum())
            .collect();
        let mut best: Option<Self> = None;
        for partition_order in (0..=finest).rev() {
            let each = count >> partition_order;
            let mut bits = 6;
            let parameters: Vec<u32> = sums
                .iter()
                .enumerate()
                .map(|(n, sum)| {
                    let values = (each - if n == 0 { order } else { 0 }) as u64;
                    // The sum of the parts is not more than the part of the sum.
                    let cost = |parameter: u32| values * u64::from(parameter + 1) + (sum >> parameter);
                    let parameter = (0..=30).min_by_key(|parameter| cost(*parameter)).unwrap_or(0);
                    bits += cost(parameter);
                    parameter
                })
                .collect();
            bits += parameters.len() as u64 * u64::from(parameter_bits(&parameters));
            if best.as_ref().is_none_or(|best| bits < best.bits) {
                best = Some(Self { partition_order, parameters, bits });
            }
            sums = sums.chunks(2).map(|pair| pair.iter().sum()).collect();
        }
        best.unwrap_or(Self { partition_order: 0, parameters: vec![0], bits: u64::MAX / 2 })
    }

    fn write(&self, residual: &[i32], count: usize, order: usize, out: &mut BitWriter<'_>) {
        let width = parameter_bits(&self.parameters);
        out.push(width - 4, 2);
        out.push(self.partition_order, 4);
        for (values, parameter) in partitions(residual, count, order, self.partition_order).zip(&self.parameters) {
            out.push(*parameter, width);
            for value in values {
                let value = folded(*value);
                out.push_zeros(value >> parameter);
                out.push(1, 1);
                out.push(value & ((1 << parameter) - 1), *parameter);
            }
        }
    }
}

/// Parameters up to 14 take 4 bits, others 5.
fn parameter_bits(parameters: &[u32]) -> u32 {
    if parameters.iter().all(|parameter| *parameter < 15) { 4 } else { 5 }
}

fn partitions(residual: &[i32], count: usize, order: usize, partition_order: u32) -> impl Iterator<Item = &[i32]> {
    let each = count >> partition_order;
    let (first, rest) = residual.split_at(each - order);
    std::iter::once(first).chain(rest.chunks(each))
}

/// Signs folded into the lowest bit.
fn folded(value: i32) -> u32 {
    (value << 1 ^ value >> 31) as u32
}

struct BitWriter<'a> {
    out: &'a mut Vec<u8>,
    /// The lowest `bits` bits are still to be written.
    held: u64,
    bits: u32,
}

impl BitWriter<'_> {
    /// The lowest `bits` bits of `value`, of which no others are set; at most 32.
    fn push(&mut self, value: u32, bits: u32) {
        self.held = self.held << bits | u64::from(value);
        self.bits += bits;
        while self.bits >= 8 {
            self.bits -= 8;
            self.out.push((self.held >> self.bits) as u8);
        }
    }

    fn push_signed(&mut self, value: i32, bits: u32) {
        self.push(value as u32 & (u32::MAX >> (32 - bits)), bits);
    }

    fn push_zeros(&mut self, count: u32) {
        for _ in 0..count / 32 {
            self.push(0, 32);
        }
        self.push(0, count % 32);
    }

    fn align(&mut self) {
        self.push(0, (8 - self.bits) % 8);
    }
}

/// The coded number of a frame (RFC 9639 §9.1.5): UTF-8, continued to 31 bits.
fn push_coded_number(number: u32, out: &mut Vec<u8>) {
    let more = match number {
        0..0x80 => {
            out.push(number as u8);
            return;
        }
        0x80..0x800 => 1,
        0x800..0x1_0000 => 2,
        0x1_0000..0x20_0000 => 3,
        0x20_0000..0x400_0000 => 4,
        _ => 5,
    };
    let lead = !(0xffu8 >> (more + 1));
    out.push(lead | (number >> (6 * more)) as u8);
    for place in (0..more).rev() {
        out.push(0x80 | (number >> (6 * place)) as u8 & 0x3f);
    }
}

const CRC_TABLE: [u16; 256] = {
    let mut table = [0; 256];
    let mut n = 0;
    while n < 256 {
        let mut value = (n as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 0x8000 != 0 { value << 1 ^ 0x8005 } else { value << 1 };
            bit += 1;
        }
        table[n] = value;
        n += 1;
    }
    table
};

fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| crc << 8 ^ CRC_TABLE[usize::from((crc >> 8) as u8 ^ byte)])
}

fn crc8(bytes: &[u8]) -> u8 {
    bytes
        .iter()
        .fold(0, |crc, byte| (0..8).fold(crc ^ byte, |crc, _| if crc & 0x80 != 0 { crc << 1 ^ 0x07 } else { crc << 1 }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frame_numbers_are_coded_as_the_format_says() {
        let coded = |number| {
            let mut out = Vec::new();
            push_coded_number(number, &mut out);
            out
        };
        assert_eq!(coded(0x7f), [0x7f]);
        assert_eq!(coded(0x7ff), "\u{7ff}".as_bytes());
        assert_eq!(coded(0xd7ff), "\u{d7ff}".as_bytes());
        assert_eq!(coded(0x1_0000), "\u{10000}".as_bytes());
        assert_eq!(coded(0x7fff_ffff), [0xfd, 0xbf, 0xbf, 0xbf, 0xbf, 0xbf]);
    }

    #[test]
    fn no_block_takes_more_than_its_samples() {
        let mut random = fastrand::Rng::with_seed(4);
        for depth in [Depth::Bits16, Depth::Bits24] {
            let most = 1 << (depth.bits() - 1);
            for kind in 0..4 {
                let block: Vec<i32> = (0..2 * BLOCK)
                    .map(|n| match kind {
                        0 => random.i32(-most..most),
                        1 => {
                            if n % 2 == 0 {
                                most - 1
                            } else {
                                -most
                            }
                        }
                        2 => {
                            if n % 4 < 2 {
                                most - 1
                            } else {
                                -most
                            }
                        }
                        _ => {
                            if n % 999 == 0 {
                                -most
                            } else {
                                0
                            }
                        }
                    })
                    .collect();
                let mut out = Vec::new();
                write(&block, 2, depth, 0, &mut out);
                assert!(out.len() <= block.len() * depth.bytes() + 16, "{depth:?} {kind}: {}", out.len());
            }
        }
    }

    #[test]
    fn a_tone_is_predicted() {
        let block: Vec<i32> = (0..BLOCK).map(|n| ((n as f64 * 0.05).sin() * 20_000.0) as i32).collect();
        let mut out = Vec::new();
        write(&block, 1, Depth::Bits16, 0, &mut out);
        assert!(out.len() < BLOCK / 2, "{}", out.len());
    }
}
