//! Every kernel on operands that end, or begin, at a page nobody may touch: an access one element too far
//! ends the test program. Behind new results and kept buffers stands a mark, see `scratch::MARK`.

use super::wide::pairs;
use super::{
    Attention, Binary, Convolution, Cpu, Finish, Layer, Most, Norm, Product, Right, Rows, Sampling, Unary,
    Values, View,
};
use crate::Precision;
use burn::tensor::bf16;
use core::arch::x86_64::*;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect};

/// Where the page without access is.
#[derive(Clone, Copy, PartialEq)]
enum Guard {
    After,
    Before,
}

/// Values next to a page without access. Never given back: tests are short.
fn guarded<T: Copy>(values: &[T], guard: Guard) -> &'static mut [T] {
    let bytes = size_of_val(values).max(1).next_multiple_of(PAGE);
    // SAFETY: fresh pages, of which the first or last is closed; the others hold the values
    unsafe {
        let start = mmap_anonymous(
            core::ptr::null_mut(),
            bytes + PAGE,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::PRIVATE,
        );
        let start: *mut u8 = start.expect("memory").cast();
        let (closed, at) = match guard {
            Guard::After => (start.add(bytes), start.add(bytes - size_of_val(values))),
            Guard::Before => (start, start.add(PAGE)),
        };
        mprotect(closed.cast(), PAGE, MprotectFlags::empty()).expect("protection");
        let to = core::slice::from_raw_parts_mut(at.cast::<T>(), values.len());
        to.copy_from_slice(values);
        to
    }
}

fn random(seed: u32, n: usize) -> Vec<f32> {
    let mut s = seed.wrapping_mul(0x9E37_79B9) | 1;
    let mut value = || {
        s ^= s << 13;
        s ^= s >> 17;
        s ^= s << 5;
        (s >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| value()).collect()
}

/// Every kind of kernel that the machine has, narrow first, with BF16 instructions only where they have the bits of
/// the others.
fn kinds() -> Vec<Cpu> {
    let mut kinds: Vec<Cpu> = Vec::new();
    for most in [Most::Avx2, Most::Avx512, Most::Avx512Bf16] {
        let Some(cpu) = Cpu::detect(most) else { break };
        if kinds.iter().all(|other| other.name() != cpu.name()) {
            kinds.push(cpu);
        }
    }
    if kinds.last().is_some_and(|cpu| cpu.name() != "avx512bf16") {
        eprintln!("SKIPPED: BF16 instructions, which this machine has not");
    } else if !dots_are_fmas() {
        kinds.pop();
        eprintln!("SKIPPED: same bits by BF16 instructions, which do not round as FMAs on this machine");
    }
    kinds
}

/// Whether BF16 instructions round after each product, the second first. It asks the bare instruction: a kernel that
/// is wrong must not be taken for a machine that is different.
fn dots_are_fmas() -> bool {
    // SAFETY: the features are there
    is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16") && unsafe { dots_add_up() }
}

#[target_feature(enable = "avx512f,avx512bf16")]
fn dots_add_up() -> bool {
    let (x, w) = (halves(1, 32 * 64), halves(2, 32 * 64));
    let (mut sums, mut expected) = (_mm512_setzero_ps(), [0f32; 16]);
    for (x, w) in x.chunks_exact(32).zip(w.chunks_exact(32)) {
        // SAFETY: each has 32 halves
        let [left, right] = [x, w].map(|v| pairs(unsafe { _mm512_loadu_epi32(v.as_ptr().cast()) }));
        sums = _mm512_dpbf16_ps(sums, left, right);
        for (i, sum) in expected.iter_mut().enumerate() {
            for at in [2 * i + 1, 2 * i] {
                *sum = x[at].to_f32().mul_add(w[at].to_f32(), *sum);
            }
        }
    }
    let mut found = [0f32; 16];
    // SAFETY: it holds sixteen
    unsafe { _mm512_storeu_ps(found.as_mut_ptr(), sums) };
    found.map(f32::to_bits) == expected.map(f32::to_bits)
}

fn halves(seed: u32, n: usize) -> Vec<bf16> {
    random(seed, n).into_iter().map(bf16::from_f32).collect()
}

/// `[m, k] · [n, k]ᵀ` in bf16.
fn half_product(cpu: Cpu, m: usize, k: usize, x: &[bf16], w: &[bf16]) -> Vec<u32> {
    let rows = |v| Rows { values: Values::Bf16(v), stride: k, width: k };
    let layer = Layer { n: w.len() / k, right: Right::Rows(rows(w)), bias: None, then: None };
    let result = cpu.layers(m, &[rows(x)], &[layer], Precision::Bf16).remove(0);
    result.into_iter().map(f32::to_bits).collect()
}

/// The same by FMAs: blocks of 512 steps, of every two steps the second first.
fn chains(k: usize, x: &[bf16], w: &[bf16]) -> Vec<u32> {
    let block = |x: &[bf16], w: &[bf16]| {
        x.chunks(2).zip(w.chunks(2)).fold(0f32, |sum, (x, w)| {
            x.iter().zip(w).rev().fold(sum, |sum, (x, w)| x.to_f32().mul_add(w.to_f32(), sum))
        })
    };
    let element = |x: &[bf16], w: &[bf16]| {
        let sums = x.chunks(512).zip(w.chunks(512)).map(|(x, w)| block(x, w));
        bf16::from_f32(sums.reduce(|a, b| b + a).expect("steps")).to_f32().to_bits()
    };
    x.chunks(k).flat_map(|x| w.chunks(k).map(move |w| element(x, w))).collect()
}

/// Runs `kernel` on open memory and on memory with a closed page behind and before it, for both
/// precisions and with every kind of kernel; the results must be the same. `kernel` gets a way to place its operands.
fn check(kernel: impl Fn(Cpu, Precision, &dyn Fn(Vec<f32>) -> &'static mut [f32]) -> Vec<f32>) {
    let kinds = kinds();
    for p in [Precision::F32, Precision::Bf16] {
        let Some(narrow) = kinds.first() else { return };
        let expected = kernel(*narrow, p, &|v| v.leak());
        for cpu in &kinds {
            for guard in [Guard::After, Guard::Before] {
                let found = kernel(*cpu, p, &|v| guarded(&v, guard));
                let same = found.iter().map(|x| x.to_bits()).eq(expected.iter().map(|x| x.to_bits()));
                assert!(same, "{}, {p:?}", cpu.name());
            }
        }
    }
}

const LENGTHS: [usize; 9] = [1, 3, 7, 8, 9, 15, 16, 17, 41];

#[test]
fn element_by_element() {
    for n in LENGTHS {
        for op in [Unary::GeluNew, Unary::GeluTanh, Unary::QuickGelu, Unary::Round, Unary::Silu] {
            check(|cpu, p, place| {
                let x = place(random(1, n));
                cpu.unary(op, p, x);
                x.to_vec()
            });
        }
        check(|cpu, p, place| {
            let (x, y, gate) = (place(random(1, n)), place(random(2, n)), place(random(3, n)));
            cpu.binary(Binary::Add, p, x, y);
            cpu.binary(Binary::Mul, p, x, y);
            cpu.gated(p, x, gate, y);
            cpu.blend(x, 0.25, y, 0.75);
            cpu.shift(p, x, 0.5);
            cpu.affine(p, x, [0.1, 2.0, 0.3], true);
            let (s, q) = cpu.moments(x, 0.1);
            [&*x, &[s, q]].concat()
        });
    }
}

#[test]
fn rows() {
    for n in LENGTHS {
        check(|cpu, p, place| {
            let (x, a, b) = (place(random(1, n)), place(random(2, n)), place(random(3, n)));
            let norms = [
                Norm::Layer { weight: a, bias: b },
                Norm::Modulate { shift: a, scale: b },
                Norm::Rms { weight: a },
                Norm::T5 { weight: b },
            ];
            let mut all = Vec::new();
            for norm in norms {
                let to = place(vec![0.0; n]);
                cpu.norm_row(norm, 1e-6, p, to, x);
                all.extend_from_slice(to);
            }
            cpu.biased_softmax(p, x, 0.5, a);
            all.extend_from_slice(x);
            let (row, cos, sin) = (place(random(4, 2 * n)), place(random(5, n)), place(random(6, n)));
            cpu.rotate(p, row, cos, sin);
            all.extend_from_slice(row);
            all
        });
    }
}

#[test]
fn bf16_is_widened() {
    let Some(cpu) = Cpu::detect(Most::Avx2) else { return };
    for n in LENGTHS {
        let values: Vec<bf16> = random(1, n).into_iter().map(bf16::from_f32).collect();
        for guard in [Guard::After, Guard::Before] {
            let to = guarded(&vec![0f32; n], guard);
            cpu.widen_bf16(to, guarded(&values, guard));
            assert!(to.iter().zip(&values).all(|(a, b)| *a == b.to_f32()));
        }
    }
}

#[test]
fn products() {
    for (m, k, n) in [(1, 1, 1), (5, 7, 3), (7, 65, 17), (13, 513, 31), (2, 1030, 33), (203, 9, 300)] {
        check(|cpu, p, place| {
            let rows = |values: &'static mut [f32], width| Rows {
                values: Values::F32(values),
                stride: width,
                width,
            };
            let first = k / 2;
            let left = [
                rows(place(random(1, m * first)), first),
                rows(place(random(2, m * (k - first))), k - first),
            ];
            let (bias, gate) = (place(random(3, n)), place(random(4, n)));
            let weight = Right::Rows(rows(place(random(5, n * k)), k));
            let columns = Right::Columns(place(random(6, n * k)), n);
            let mut all = Vec::new();
            for right in [weight, columns] {
                let product = Product { m, n, left: &left, right };
                let layer = Layer { n, right, bias: Some(bias), then: Some(Unary::Silu) };
                let two = [layer, Layer { bias: None, then: None, ..layer }];
                all.extend(cpu.layers(m, &left, &two, p).concat());
                let (to, residual) = (place(vec![0.0; m * n]), place(random(7, m * n)));
                let gate = Some((&*gate, m));
                cpu.product(&product, Finish::Into { residual, bias: None, gate, scratch: to }, p, true);
                all.extend_from_slice(residual);
                cpu.product(&product, Finish::Map { to, bias: Some(bias), then: None }, p, false);
                all.extend_from_slice(to);
            }
            all
        });
    }
}

#[test]
fn weights_in_half_precision() {
    let Some(cpu) = Cpu::detect(Most::Best) else { return };
    for (k, n) in [(1, 1), (65, 17), (513, 33)] {
        let (x, w) = (random(1, 3 * k), random(2, n * k));
        let narrow: Vec<bf16> = w.iter().map(|x| bf16::from_f32(*x)).collect();
        let wide: Vec<f32> = narrow.iter().map(|x| x.to_f32()).collect();
        let product = |values: Values<'_>| {
            let right = Right::Rows(Rows { values, stride: k, width: k });
            let left = [Rows { values: Values::F32(&x), stride: k, width: k }];
            cpu.layers(3, &left, &[Layer { n, right, bias: None, then: None }], Precision::F32)
        };
        for guard in [Guard::After, Guard::Before] {
            assert!(product(Values::Bf16(guarded(&narrow, guard))) == product(Values::F32(&wide)));
        }
    }
}

#[test]
fn products_of_bf16_are_chains_of_fmas() {
    for (m, k, n) in
        [(1, 1, 1), (1, 2, 5), (5, 7, 3), (7, 65, 17), (13, 513, 31), (29, 1030, 33), (97, 9, 300)]
    {
        let (x, w) = (halves(1, m * k), halves(2, n * k));
        let expected = chains(k, &x, &w);
        for cpu in kinds() {
            for guard in [Guard::After, Guard::Before] {
                let found = half_product(cpu, m, k, guarded(&x, guard), guarded(&w, guard));
                assert!(found == expected, "{}: [{m}, {k}] times [{n}, {k}]", cpu.name());
            }
        }
    }
}

/// A layer over bf16 weights beside one over f32 has the bits it has alone, with all that may follow.
#[test]
fn layers_of_both_kinds() {
    let (m, k, n) = (31, 150, 40);
    let (x, half, single) = (random(1, m * k), halves(2, n * k), random(3, n * k));
    let bias = random(4, n);
    let run = |cpu: Cpu, layers: &[Layer<'_>]| {
        cpu.layers(m, &[Rows { values: Values::F32(&x), stride: k, width: k }], layers, Precision::Bf16)
    };
    let layer = |values| {
        let right = Right::Rows(Rows { values, stride: k, width: k });
        Layer { n, right, bias: Some(&bias), then: Some(Unary::GeluTanh) }
    };
    let (half, single) = (layer(Values::Bf16(&half)), layer(Values::F32(&single)));
    for cpu in kinds() {
        let both = run(cpu, &[single, half, single]);
        assert!(both[0] == both[2] && both[1] == run(cpu, &[half])[0] && both[0] == run(cpu, &[single])[0]);
        assert!(both[1] == run(kinds()[0], &[half])[0], "{}", cpu.name());
    }
}

#[test]
fn convolutions() {
    for (c, o, h, w) in
        [(1, 1, 2, 2), (3, 5, 5, 7), (2, 3, 3, 16), (60, 7, 9, 32), (1, 100, 2, 80), (2, 3, 1, 1)]
    {
        for sampling in [Sampling::Plain, Sampling::Doubled, Sampling::Halved] {
            if h * w == 1 && matches!(sampling, Sampling::Halved) {
                continue;
            }
            check(|cpu, p, place| {
                let [oh, ow] = sampling.result(h, w);
                let residual =
                    matches!(sampling, Sampling::Plain).then(|| &*place(random(4, 2 * o * oh * ow)));
                let convolution = Convolution {
                    input: place(random(1, 2 * c * h * w)),
                    dims: [2, c, h, w],
                    weight: Values::F32(place(random(2, o * c * 9))),
                    bias: place(random(3, o)),
                    sampling,
                    residual,
                };
                cpu.convolve(&convolution, p)
            });
        }
    }
}

#[test]
fn attention() {
    for (sq, sk, h, d) in [(1, 1, 1, 1), (7, 5, 2, 3), (97, 130, 1, 16), (3, 259, 2, 20)] {
        check(|cpu, p, place| {
            let view = |seed, s| View {
                data: place(random(seed, s * h * d)),
                strides: [s * h * d, h * d, d],
                dims: [1, s, h, d],
            };
            let (queries, more) = ([view(1, sq)], 9);
            let (keys, values) = ([view(2, sk), view(3, more)], [view(4, sk), view(5, more)]);
            let attention = Attention { queries: &queries, keys: &keys, values: &values };
            let (out, lse) = cpu.attention(&attention, 0.3, [p, p]).remove(0);
            let (whole, _) = cpu.attention(&attention, 0.3, [p, Precision::F32]).remove(0);
            [out, lse, whole].concat()
        });
    }
}

const PAGE: usize = 4096;
