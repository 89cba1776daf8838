//! The starting noise: `torch.randn` of a CPU generator, bit for bit.
//!
//! MT19937 after M. Matsumoto and T. Nishimura (1998), Box–Muller in blocks of 16 as in PyTorch's
//! `aten/src/ATen/native/cpu/DistributionTemplates.h`, logarithm, sine and cosine by the Cephes
//! polynomials with fused multiply-add as x86-64 builds with AVX2 evaluate them
//! (`aten/src/ATen/native/cpu/avx_mathfun.h`). Only the low 32 bits of a seed count.

const N: usize = 624;
const M: usize = 397;
/// Values that one Box–Muller block makes.
const BLOCK: usize = 16;

/// torch's CPU generator.
#[derive(Clone)]
pub struct Generator {
    state: [u32; N],
    at: usize,
    /// The second value of the last pair of [`Self::normal_pair`].
    kept: Option<f64>,
}

impl Generator {
    /// `torch.Generator("cpu").manual_seed(seed)`.
    pub fn new(seed: u64) -> Self {
        let mut state = [seed as u32; N];
        for j in 1..N {
            let x = state[j - 1];
            state[j] = 1_812_433_253u32.wrapping_mul(x ^ (x >> 30)).wrapping_add(j as u32);
        }
        Self { state, at: N, kept: None }
    }

    /// `n` standard normal values as `torch.randn(n, generator=self)` draws them in f32.
    pub fn randn(&mut self, n: usize) -> Vec<f32> {
        if n < BLOCK {
            return (0..n).map(|_| self.normal() as f32).collect();
        }
        let mut v: Vec<f32> = (0..n).map(|_| self.uniform()).collect();
        v.chunks_exact_mut(BLOCK).for_each(transform);
        if !n.is_multiple_of(BLOCK) {
            let tail = &mut v[n - BLOCK..];
            tail.fill_with(|| self.uniform());
            transform(tail);
        }
        v
    }

    /// Skips what `randn(n)` would draw, `times` times.
    pub fn skip_randn(&mut self, n: usize, times: usize) {
        for _ in 0..times {
            if n.is_multiple_of(BLOCK) {
                (0..n).for_each(|_| {
                    self.draw();
                });
            } else {
                self.randn(n);
            }
        }
    }

    /// The next 32 random bits.
    fn draw(&mut self) -> u32 {
        if self.at == N {
            self.refill();
        }
        let mut y = self.state[self.at];
        self.at += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9D2C_5680;
        y ^= (y << 15) & 0xEFC6_0000;
        y ^ (y >> 18)
    }

    fn refill(&mut self) {
        for i in 0..N {
            let (u, v) = (self.state[i], self.state[(i + 1) % N]);
            let twist =
                (((u & 0x8000_0000) | (v & 0x7FFF_FFFF)) >> 1) ^ if v & 1 == 1 { 0x9908_B0DF } else { 0 };
            self.state[i] = self.state[(i + M) % N] ^ twist;
        }
        self.at = 0;
    }

    /// 24 random bits in [0, 1).
    fn uniform(&mut self) -> f32 {
        (self.draw() & 0x00FF_FFFF) as f32 * (1.0 / 16_777_216.0)
    }

    /// 53 random bits in [0, 1); the first draw is the high half.
    fn uniform53(&mut self) -> f64 {
        let (high, low) = (u64::from(self.draw()), u64::from(self.draw()));
        ((high << 32 | low) & ((1 << 53) - 1)) as f64 * (1.0 / 9_007_199_254_740_992.0)
    }

    /// One value in double precision: how torch draws fewer than 16.
    fn normal(&mut self) -> f64 {
        if let Some(x) = self.kept.take() {
            return x;
        }
        let (u1, u2) = (self.uniform53(), self.uniform53());
        let r = (-2.0 * (-u2).ln_1p()).sqrt();
        let theta = 2.0 * std::f64::consts::PI * u1;
        self.kept = Some(r * theta.sin());
        r * theta.cos()
    }
}

/// Box–Muller on 16 uniform values: the first eight are radii, the last eight angles.
fn transform(v: &mut [f32]) {
    let (first, second) = v.split_at_mut(BLOCK / 2);
    for (a, b) in first.iter_mut().zip(second) {
        let radius = (-2.0 * ln(1.0 - *a)).sqrt();
        let (sin, cos) = sin_cos(std::f32::consts::TAU * *b);
        (*a, *b) = (radius * cos, radius * sin);
    }
}

/// Natural logarithm of a positive normal number.
#[expect(clippy::excessive_precision, reason = "the constants as published")]
fn ln(x: f32) -> f32 {
    let bits = x.max(f32::MIN_POSITIVE).to_bits();
    let mut e = (bits >> 23) as f32 - 126.0;
    let m = f32::from_bits((bits & 0x007F_FFFF) | 0x3F00_0000);
    let mut x = m - 1.0;
    if m < std::f32::consts::FRAC_1_SQRT_2 {
        x += m;
        e -= 1.0;
    }
    let z = x * x;
    let mut y = 7.037_683_629_2e-2_f32;
    for c in [
        -1.151_461_031_0e-1,
        1.167_699_874_0e-1,
        -1.242_014_084_6e-1,
        1.424_932_278_7e-1,
        -1.666_805_766_5e-1,
        2.000_071_476_5e-1,
        -2.499_999_399_3e-1,
        3.333_333_117_4e-1,
    ] {
        y = y.mul_add(x, c);
    }
    y *= x;
    y = y.mul_add(z, e * -2.121_944_40e-4);
    y = z.mul_add(-0.5, y);
    e.mul_add(0.693_359_375, x + y)
}

/// Sine and cosine of a number ≥ 0.
#[expect(clippy::excessive_precision, reason = "the constants as published")]
fn sin_cos(x: f32) -> (f32, f32) {
    let j = ((x * 1.273_239_544_735_16) as i32 + 1) & !1;
    let mut x = x;
    for c in [-0.785_156_25, -2.418_756_484_985_351_562_5e-4, -3.774_894_977_445_941_08e-8] {
        x = (j as f32).mul_add(c, x);
    }
    let z = x * x;
    let mut c = 2.443_315_711_809_948e-5_f32;
    for k in [-1.388_731_625_493_765e-3, 4.166_664_568_298_827e-2] {
        c = c.mul_add(z, k);
    }
    c *= z;
    c = c.mul_add(z, -(z * 0.5)) + 1.0;
    let mut s = -1.951_529_589_1e-4_f32;
    for k in [8.332_160_873_6e-3, -1.666_665_461_1e-1] {
        s = s.mul_add(z, k);
    }
    s *= z;
    s = s.mul_add(x, x);
    if j & 2 != 0 {
        std::mem::swap(&mut s, &mut c);
    }
    let sin = if j & 4 != 0 { -s } else { s };
    let cos = if (j - 2) & 4 == 0 { -c } else { c };
    (sin, cos)
}
