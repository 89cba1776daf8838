//! Weights by name, straight from memory-mapped safetensors files.
//!
//! A tensor that can be used as it lies in the file is never copied: it *is* the map. bf16 and f16
//! weights of a float32 run stay as they are and are widened layer by layer by `dg-kernels`.

use crate::{ModelError, ModelSource, Unread};
use burn::tensor::{AllocationProperty, DType, Device, Distribution, Tensor, TensorData, bf16, f16};
use bytes::Bytes;
use dg_kernels::{Activation, Precision, SharedLayer};
use dg_map::MappedFile;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

/// Most weight files of one component.
const SHARDS_MAX: usize = 512;
/// Standard deviation of random weights.
const RANDOM_DEVIATION: f64 = 0.02;

/// The tensors of one component: name → place in a mapped file.
pub struct WeightFiles {
    component: String,
    tensors: BTreeMap<String, Entry>,
    files: Vec<MappedWeights>,
}

/// One mapped file.
pub struct MappedWeights {
    /// Path relative to the model folder.
    pub name: Arc<str>,
    /// The whole file.
    pub bytes: Bytes,
    /// Where the tensors start: length of header and length field.
    pub header_len: usize,
    map: Option<MappedFile>,
}

/// The pages of a mapped file that hold one tensor, or several beside each other.
#[derive(Clone)]
pub struct Pages {
    /// The file, relative to the model folder.
    file: Arc<str>,
    map: MappedFile,
    range: Range<usize>,
}

impl Pages {
    /// Those of `range` of a file.
    #[cfg(test)]
    pub(crate) fn new(map: &MappedFile, range: Range<usize>) -> Self {
        Self { file: "weights".into(), map: map.clone(), range }
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// Whether there is no byte.
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// Gives the memory back; what is used again is read again, or comes from the system's cache.
    pub fn release(&self) {
        if let Err(e) = self.map.release(self.range.clone()) {
            // the pages stay: nothing is lost but memory
            tracing::debug!("releasing weights: {e}");
        }
    }

    /// [`release`](Self::release), out of the system's cache too.
    pub fn forget(&self) {
        if let Err(e) = self.map.forget(self.range.clone()) {
            tracing::debug!("forgetting weights: {e}");
        }
    }

    /// Reads them into memory, and waits for it.
    ///
    /// # Errors
    /// [`Unread`], where a touch of them would end the process.
    pub fn read_ahead(&self) -> Result<(), Unread> {
        self.map.read_ahead(self.range.clone()).map_err(|e| {
            let Range { start, end } = self.range;
            let reason = format!(
                "bytes {start} to {end} cannot be read: the disk fails, or the file has been cut short ({e})"
            );
            Unread { file: self.file.to_string(), reason }
        })
    }

    /// Takes `next` in, if it follows in the same file within `gap` bytes.
    pub(crate) fn join(&mut self, next: &Self, gap: usize) -> bool {
        let is_next = self.map.is_same(&next.map)
            && next.range.start >= self.range.start
            && next.range.start <= self.range.end.saturating_add(gap);
        if is_next {
            self.range.end = self.range.end.max(next.range.end);
        }
        is_next
    }

    /// Where it lies, for sorting.
    pub(crate) fn place(&self) -> (usize, usize) {
        (self.map.address(), self.range.start)
    }
}

#[derive(Clone)]
struct Entry {
    file: Arc<str>,
    bytes: Bytes,
    dtype: Dtype,
    shape: Vec<usize>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl WeightFiles {
    /// Maps `component/base.safetensors`, or the shards that `component/base.safetensors.index.json`
    /// names, and reads their headers.
    pub fn open(source: &ModelSource, component: &str, base: &str) -> Result<Self, ModelError> {
        let single = format!("{component}/{base}.safetensors");
        let index = format!("{single}.index.json");
        let mut all = Self { component: component.into(), tensors: BTreeMap::new(), files: Vec::new() };
        if source.has(&single) || !source.has(&index) {
            all.add(source, &single)?;
            return Ok(all);
        }
        let map = source.json::<Index>(&index)?.weight_map;
        for shard in shard_names(&index, &map)? {
            all.add(source, &format!("{component}/{shard}"))?;
        }
        for (tensor, shard) in &map {
            let file = format!("{component}/{shard}");
            if all.tensors.get(tensor).is_none_or(|e| *e.file != *file) {
                return Err(ModelError::MissingTensor { file, tensor: tensor.clone() });
            }
        }
        Ok(all)
    }

    fn add(&mut self, source: &ModelSource, file: &str) -> Result<(), ModelError> {
        let (bytes, map) = source.weights(file)?;
        let bad = |reason: String| ModelError::Weights { file: file.into(), reason };
        let (header, metadata) = SafeTensors::read_metadata(&bytes).map_err(|e| bad(e.to_string()))?;
        let name: Arc<str> = file.into();
        let start = header + 8;
        for (tensor, info) in metadata.tensors() {
            let (from, to) = info.data_offsets;
            if start + to > bytes.len() || from > to {
                return Err(bad(format!("tensor `{tensor}` lies outside the file")));
            }
            let part = bytes.slice(start + from..start + to);
            let entry =
                Entry { file: name.clone(), bytes: part, dtype: info.dtype, shape: info.shape.clone() };
            if self.tensors.insert(tensor.clone(), entry).is_some() {
                return Err(bad(format!("tensor `{tensor}` is in two files")));
            }
        }
        self.files.push(MappedWeights { name, bytes, header_len: start, map });
        Ok(())
    }

    /// The mapped files.
    pub fn files(&self) -> &[MappedWeights] {
        &self.files
    }

    /// Bytes of all files.
    pub fn mapped_bytes(&self) -> u64 {
        self.files.iter().map(|f| f.bytes.len() as u64).sum()
    }

    /// Average bytes of a value in the files.
    pub fn bytes_per_value(&self) -> f64 {
        let values: usize = self.tensors.values().map(|e| e.shape.iter().product::<usize>()).sum();
        let bytes: usize = self.tensors.values().map(|e| e.bytes.len()).sum();
        bytes as f64 / values.max(1) as f64
    }

    /// Whether all matrices are bfloat16.
    pub fn is_bf16(&self) -> bool {
        self.tensors.values().all(|e| e.shape.len() < 2 || e.dtype == Dtype::BF16)
    }

    /// Bytes of the copies that a run with `precision` makes of these weights: bf16 of what is not
    /// bf16 in the file, and the widened form of the largest weight.
    pub fn converted_bytes(&self, precision: Precision) -> u64 {
        let sizes = || self.tensors.values().map(|e| (e.dtype, e.shape.iter().product::<usize>() as u64));
        let narrow = sizes().filter(|(dtype, _)| precision == Precision::Bf16 && *dtype != Dtype::BF16);
        let wide = sizes().filter(|(dtype, _)| *dtype != Dtype::F32 || precision == Precision::Bf16);
        narrow.map(|(_, n)| 2 * n).sum::<u64>() + wide.map(|(_, n)| 4 * n).max().unwrap_or(0)
    }

    /// A loader that gives the tensors for computing with `precision` on `device`.
    pub fn loader(&self, device: &Device, precision: Precision) -> Loader<'_> {
        Loader {
            files: Some(self),
            device: device.clone(),
            precision,
            used: RefCell::default(),
            in_place: RefCell::default(),
        }
    }
}

impl Loader<'static> {
    /// A loader that has every tensor: random weights (normal, deviation 0.02), made on the device, zero biases, and ones
    /// for norms. For measurements of shapes whose files are not at hand.
    pub fn random(device: &Device, precision: Precision) -> Self {
        Self {
            files: None,
            device: device.clone(),
            precision,
            used: RefCell::default(),
            in_place: RefCell::default(),
        }
    }
}

/// Names of the shards, each once; refuses names that could leave the folder.
fn shard_names(index: &str, map: &BTreeMap<String, String>) -> Result<BTreeSet<String>, ModelError> {
    let names: BTreeSet<String> = map.values().cloned().collect();
    let bad = |reason: String| ModelError::Config { file: index.into(), reason };
    if names.is_empty() || names.len() > SHARDS_MAX {
        return Err(bad(format!("weight_map names {} files, expected 1 to {SHARDS_MAX}", names.len())));
    }
    match names.iter().find(|n| n.contains(['/', '\\', '\0']) || !n.ends_with(".safetensors")) {
        Some(name) => {
            Err(bad(format!("weight_map names `{name}`, which is no safetensors file of this folder")))
        }
        None => Ok(names),
    }
}

/// Hands out tensors and remembers which were asked for.
pub struct Loader<'a> {
    /// Without files, weights are random.
    files: Option<&'a WeightFiles>,
    device: Device,
    precision: Precision,
    used: RefCell<BTreeSet<String>>,
    /// Pages of the weights that are used as they lie in the files.
    in_place: RefCell<Vec<Pages>>,
}

impl Loader<'_> {
    /// Whether a tensor of that name exists.
    pub fn has(&self, name: &str) -> bool {
        self.files.is_none_or(|files| files.tensors.contains_key(name))
    }

    /// The device that tensors are made on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// A weight in the file's own format and layout, zero-copy; in a bf16 run f32 and f16 weights
    /// are converted once.
    pub fn weight<const D: usize>(&self, name: &str, shape: [usize; D]) -> Result<Tensor<D>, ModelError> {
        let Some(files) = self.files else {
            let dtype = if self.precision == Precision::Bf16 { DType::BF16 } else { DType::F32 };
            let normal = Distribution::Normal(0.0, RANDOM_DEVIATION);
            return Ok(Tensor::random(shape, normal, (&self.device, dtype)));
        };
        let entry = self.entry(files, name, &shape)?;
        let (data, dtype) = match (entry.dtype, self.precision) {
            (Dtype::BF16, _) => (entry.data(&shape, DType::BF16), DType::BF16),
            (_, Precision::Bf16) => {
                let narrow: Vec<bf16> = entry.values().map(bf16::from_f32).collect();
                (TensorData::new(narrow, shape), DType::BF16)
            }
            (Dtype::F16, _) => (entry.data(&shape, DType::F16), DType::F16),
            _ => (entry.data(&shape, DType::F32), DType::F32),
        };
        if entry.lies_as(dtype) && crate::is_cpu(&self.device) {
            self.in_place.borrow_mut().extend(self.pages(name));
        }
        Ok(Tensor::from_data(data, (&self.device, dtype)))
    }

    /// What `load` makes of this, and the pages of the weights in it that are used as they lie in mapped files.
    pub(crate) fn with_pages<T>(
        &self,
        load: impl FnOnce(&Self) -> Result<T, ModelError>,
    ) -> Result<(T, Vec<Pages>), ModelError> {
        let outer = self.in_place.take();
        let loaded = load(self);
        let pages = self.in_place.replace(outer);
        Ok((loaded?, pages))
    }

    /// The pages of a weight that is used as it lies in a mapped file; `None` for bytes of the
    /// program and for a weight that is not there.
    pub fn pages(&self, name: &str) -> Option<Pages> {
        let files = self.files?;
        let entry = files.tensors.get(name)?;
        let file = files.files.iter().find(|f| f.name == entry.file)?;
        let start = entry.bytes.as_ptr().addr() - file.bytes.as_ptr().addr();
        Some(Pages {
            file: file.name.clone(),
            map: file.map.clone()?,
            range: start..start + entry.bytes.len(),
        })
    }

    /// A bias or a norm's weight: in f32, of values of the run's precision.
    pub fn vector(&self, name: &str, len: usize) -> Result<Tensor<1>, ModelError> {
        let Some(files) = self.files else {
            let value = if name.ends_with(".bias") { 0.0 } else { 1.0 };
            return Ok(Tensor::full([len], value, (&self.device, DType::F32)));
        };
        let entry = self.entry(files, name, &[len])?;
        let values: Vec<f32> = match self.precision {
            Precision::F32 => entry.values().collect(),
            Precision::Bf16 => entry.values().map(|x| bf16::from_f32(x).to_f32()).collect(),
        };
        Ok(Tensor::from_data(TensorData::new(values, [len]), (&self.device, DType::F32)))
    }

    /// `name.weight` `[out, in]` and `name.bias`.
    pub fn linear(&self, name: &str, inp: usize, out: usize) -> Result<Linear, ModelError> {
        let bias = self.vector(&format!("{name}.bias"), out)?;
        Ok(Linear { bias: Some(bias), ..self.linear_without_bias(name, inp, out)? })
    }

    /// `name.weight` `[out, in]` alone, as in T5.
    pub fn linear_without_bias(&self, name: &str, inp: usize, out: usize) -> Result<Linear, ModelError> {
        let weight = self.weight(&format!("{name}.weight"), [out, inp])?;
        Ok(Linear { weight, bias: None, precision: self.precision })
    }

    /// The precision of the run.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Bytes in the files of the tensors that were asked for.
    pub fn used_bytes(&self) -> u64 {
        let used = self.used.borrow();
        let entry = |name: &String| self.files?.tensors.get(name);
        used.iter().filter_map(entry).map(|e| e.bytes.len() as u64).sum()
    }

    /// The pages of the weights that were asked for and are used as they lie in mapped files.
    pub fn used_pages(&self) -> Vec<Pages> {
        self.used.borrow().iter().filter_map(|name| self.pages(name)).collect()
    }

    /// Tensors that nobody asked for, without those under one of the `known` prefixes.
    pub fn unused(&self, known: &[&str]) -> Vec<String> {
        let used = self.used.borrow();
        let unknown = |n: &&String| !used.contains(*n) && !known.iter().any(|k| n.starts_with(k));
        self.files.map_or_else(Vec::new, |files| files.tensors.keys().filter(unknown).cloned().collect())
    }

    fn entry<'f>(
        &self,
        files: &'f WeightFiles,
        name: &str,
        shape: &[usize],
    ) -> Result<&'f Entry, ModelError> {
        let Some(entry) = files.tensors.get(name) else {
            let file = match files.files.as_slice() {
                [one] => one.name.to_string(),
                _ => format!("{}/*.safetensors", files.component),
            };
            return Err(ModelError::MissingTensor { file, tensor: name.into() });
        };
        let known = matches!(entry.dtype, Dtype::F32 | Dtype::BF16 | Dtype::F16);
        if entry.shape != shape || !known {
            return Err(ModelError::WrongTensor {
                file: entry.file.to_string(),
                tensor: name.into(),
                found: format!("{:?} {:?}", entry.dtype, entry.shape),
                expected: format!("F32, BF16 or F16 {shape:?}"),
            });
        }
        self.used.borrow_mut().insert(name.into());
        Ok(entry)
    }
}

impl Entry {
    /// Whether a tensor of that format can be the bytes of the file.
    fn lies_as(&self, dtype: DType) -> bool {
        let align = if dtype == DType::F32 { align_of::<f32>() } else { align_of::<bf16>() };
        let is_same = match self.dtype {
            Dtype::BF16 => dtype == DType::BF16,
            Dtype::F16 => dtype == DType::F16,
            _ => dtype == DType::F32,
        };
        is_same && self.bytes.as_ptr().addr().is_multiple_of(align)
    }

    /// The bytes as they lie in the file; copied if their place there does not suit the format.
    fn data(&self, shape: &[usize], dtype: DType) -> TensorData {
        let start = self.bytes.as_ptr().addr();
        match dtype {
            DType::F32 if !start.is_multiple_of(align_of::<f32>()) => {
                return TensorData::new(self.values().collect::<Vec<f32>>(), shape.to_vec());
            }
            DType::BF16 if !start.is_multiple_of(align_of::<bf16>()) => {
                return TensorData::new(
                    self.values().map(bf16::from_f32).collect::<Vec<_>>(),
                    shape.to_vec(),
                );
            }
            DType::F16 if !start.is_multiple_of(align_of::<f16>()) => {
                return TensorData::new(self.values().map(f16::from_f32).collect::<Vec<_>>(), shape.to_vec());
            }
            _ => {}
        }
        let shared = burn::tensor::Bytes::from_shared(self.bytes.clone(), AllocationProperty::File);
        TensorData::from_bytes(shared, shape.to_vec(), dtype)
    }

    /// The values as f32, whatever their format and alignment.
    fn values(&self) -> Box<dyn Iterator<Item = f32> + '_> {
        let b = &self.bytes;
        match self.dtype {
            Dtype::BF16 => Box::new(b.as_chunks().0.iter().map(|x| bf16::from_le_bytes(*x).to_f32())),
            Dtype::F16 => Box::new(b.as_chunks().0.iter().map(|x| f16::from_le_bytes(*x).to_f32())),
            _ => Box::new(b.as_chunks().0.iter().map(|x| f32::from_le_bytes(*x))),
        }
    }
}

/// y = x·Wᵀ + b with `W` `[out, in]`.
pub struct Linear {
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    precision: Precision,
}

impl Linear {
    /// `x` `[…, in]` → `[…, out]`.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        dg_kernels::linear(x, &self.weight, self.bias.as_ref(), self.precision)
    }

    /// [`forward`](Self::forward), then an activation.
    pub fn forward_then<const D: usize>(&self, x: Tensor<D>, then: Activation) -> Tensor<D> {
        dg_kernels::linear_then(x, &self.weight, self.bias.as_ref(), then, self.precision)
    }

    /// This layer as one of several over the same input, see [`dg_kernels::linear_shared`].
    pub fn shared(&self, then: Option<Activation>) -> SharedLayer<'_> {
        SharedLayer { weight: &self.weight, bias: self.bias.as_ref(), then }
    }

    /// `residual` `[b, n, out]` + `gate` `[b, out]` · the layer's output for `parts`, `[b, n, …]` each, side
    /// by side.
    pub fn gated(&self, residual: Tensor<3>, gate: Tensor<2>, parts: Vec<Tensor<3>>) -> Tensor<3> {
        dg_kernels::linear_gated(residual, gate, parts, &self.weight, self.bias.as_ref(), self.precision)
    }

    /// `residual` `[b, n, out]` + the layer's output for `x`.
    pub fn added(&self, residual: Tensor<3>, x: Tensor<3>) -> Tensor<3> {
        dg_kernels::linear_add(residual, x, &self.weight, self.bias.as_ref(), self.precision)
    }
}

/// The results of `layers` for `x` `[…, in]`, in order.
pub fn together<const D: usize, const N: usize>(
    x: Tensor<D>,
    layers: [SharedLayer<'_>; N],
    p: Precision,
) -> [Tensor<D>; N] {
    let mut results = dg_kernels::linear_shared(x, &layers, p).into_iter();
    std::array::from_fn(|_| results.next().expect("a result for each layer"))
}
