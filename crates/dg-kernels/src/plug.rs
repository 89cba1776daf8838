//! Crossing from `Tensor<D>` to the memory of a Flex tensor and back.

use crate::simd::{Cpu, Most, Values, View};
use burn::backend::{DispatchDevice, Flex, flex::FlexTensor};
use burn::tensor::{Bytes, DType, Shape, Tensor, TensorData, bf16, f16};
use rayon::prelude::*;
use std::sync::OnceLock;

/// The kernels' instruction set, unless it is missing or switched off.
pub(crate) fn cpu() -> Option<Cpu> {
    static FOUND: OnceLock<Option<Cpu>> = OnceLock::new();
    *FOUND.get_or_init(|| match asked() {
        Ok(None) => None,
        Ok(Some(most)) => Cpu::detect(most),
        Err(_) => Cpu::detect(Most::Best),
    })
}

/// How far `DG_KERNELS` lets kernels go; none for the portable path.
fn asked() -> Result<Option<Most>, String> {
    let Some(value) = std::env::var_os(VARIABLE).filter(|value| !value.is_empty()) else {
        return Ok(Some(Most::Best));
    };
    match value.to_str() {
        Some("portable") => Ok(None),
        Some("avx2") => Ok(Some(Most::Avx2)),
        Some("avx512") => Ok(Some(Most::Avx512)),
        Some("avx512bf16") => Ok(Some(Most::Avx512Bf16)),
        _ => Err(format!(
            "{VARIABLE}={} names no kernels; hint: portable, avx2, avx512, avx512bf16, or leave it out",
            value.to_string_lossy()
        )),
    }
}

/// Looks at `DG_KERNELS` before anything is computed.
///
/// # Errors
/// Its value, if it names no kernels, with a hint. Kernels take the best path then.
pub fn check_environment() -> Result<(), String> {
    asked().map(|_| ())
}

const VARIABLE: &str = "DG_KERNELS";

/// The kernels, if they can run on `t`: f32 on the Flex device and not empty.
pub(crate) fn native<const D: usize>(t: &Tensor<D>) -> Option<Cpu> {
    let here = matches!(t.device().as_dispatch(), DispatchDevice::Flex(_));
    cpu().filter(|_| here && t.dtype() == DType::F32 && !t.dims().contains(&0))
}

/// The primitive of a tensor on the Flex device.
fn flex<const D: usize>(t: Tensor<D>) -> FlexTensor {
    t.try_into_primitive::<Flex>().expect("a tensor on the Flex device")
}

/// Contiguous, starting at offset 0 and owning exactly its elements.
pub(crate) fn dense<const D: usize>(t: Tensor<D>) -> FlexTensor {
    let t = flex(f32_of(t));
    let whole = t.is_contiguous()
        && t.layout().start_offset() == 0
        && t.bytes().len() == t.layout().num_elements() * size_of::<f32>();
    if whole { t } else { t.to_contiguous() }
}

/// Contiguous, wherever it lies in its memory; read it with [`slice()`].
pub(crate) fn contiguous<const D: usize>(t: Tensor<D>) -> FlexTensor {
    let t = flex(f32_of(t));
    if t.is_contiguous() { t } else { t.to_contiguous() }
}

pub(crate) fn slice(t: &FlexTensor) -> &[f32] {
    t.as_slice::<f32>().expect("contiguous f32")
}

/// Rank 4, with rows that can be read as slices: the last dimension has stride 1.
pub(crate) fn rows(t: Tensor<4>) -> FlexTensor {
    let t = flex(f32_of(t));
    let (layout, d) = (t.layout(), t.layout().shape()[3]);
    let dense_rows = d == 1 || layout.strides()[3] == 1;
    if dense_rows && layout.strides().iter().all(|s| *s >= 0) { t } else { t.to_contiguous() }
}

/// What [`rows`] prepared.
pub(crate) fn view(t: &FlexTensor) -> View<'_> {
    let layout = t.layout();
    let stride = |i: usize| usize::try_from(layout.strides()[i]).expect("checked by `rows`");
    View {
        data: &t.storage::<f32>()[layout.start_offset()..],
        strides: [stride(0), stride(1), stride(2)],
        dims: core::array::from_fn(|i| layout.shape()[i]),
    }
}

/// A tensor around `data` without copying it.
pub(crate) fn tensor<const D: usize>(data: Vec<f32>, shape: [usize; D]) -> Tensor<D> {
    let data = TensorData::from_bytes(Bytes::from_elems(data), Shape::from(shape), DType::F32);
    wrap(FlexTensor::from_data(data))
}

pub(crate) fn wrap<const D: usize>(t: FlexTensor) -> Tensor<D> {
    Tensor::from_primitive::<Flex>(t)
}

/// The values of a small parameter (f32, bf16 or f16) as f32.
pub(crate) fn small<const D: usize>(t: &Tensor<D>) -> Vec<f32> {
    slice(&contiguous(t.clone())).to_vec()
}

/// A weight in its own format (f32, bf16 or f16 on the Flex device), contiguous; read it with [`values`].
pub(crate) fn weight<const D: usize>(t: &Tensor<D>) -> FlexTensor {
    let t = flex(t.clone());
    if t.is_contiguous() { t } else { t.to_contiguous() }
}

/// What [`weight`] prepared.
pub(crate) fn values(t: &FlexTensor) -> Values<'_> {
    match t.dtype() {
        DType::BF16 => Values::Bf16(t.as_slice::<bf16>().expect("contiguous")),
        DType::F32 => Values::F32(slice(t)),
        _ => Values::F16(t.as_slice::<f16>().expect("weights are f32, bf16 or f16")),
    }
}

/// Copies rows of a table (f32, bf16 or f16 on the Flex device).
pub(crate) fn gather(cpu: Cpu, table: &Tensor<2>, ids: &[u32]) -> Vec<f32> {
    let width = table.dims()[1];
    let t = flex(table.clone());
    let t = if t.is_contiguous() { t } else { t.to_contiguous() };
    let mut out = vec![0f32; ids.len() * width];
    let rows = out.par_chunks_mut(width).zip(ids).map(|(to, id)| (to, *id as usize * width));
    match t.dtype() {
        DType::F32 => rows.for_each(|(to, at)| to.copy_from_slice(&slice(&t)[at..][..width])),
        DType::BF16 => {
            let data = t.as_slice::<bf16>().expect("contiguous");
            rows.for_each(|(to, at)| cpu.widen_bf16(to, &data[at..][..width]));
        }
        _ => {
            let data = t.as_slice::<f16>().expect("tables are f32, bf16 or f16");
            rows.for_each(|(to, at)| widen_f16(to, &data[at..][..width]));
        }
    }
    out
}

fn widen_f16(to: &mut [f32], from: &[f16]) {
    to.iter_mut().zip(from).for_each(|(to, x)| *to = x.to_f32());
}

fn f32_of<const D: usize>(t: Tensor<D>) -> Tensor<D> {
    if t.dtype() == DType::F32 { t } else { t.cast(DType::F32) }
}

/// Elements per task of a pass over memory.
pub(crate) const CHUNK: usize = 1 << 14;
