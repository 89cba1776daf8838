//! Reference tensors.

use std::collections::BTreeMap;
use std::path::Path;

use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};

use crate::compare::max_abs_diff;

/// All tensors of one case.
#[derive(Clone, Debug)]
pub struct Golden {
    case: String,
    tensors: BTreeMap<String, GoldenTensor>,
}

/// One reference tensor.
#[derive(Clone, Debug)]
pub struct GoldenTensor {
    /// The shape of the whole tensor, also where only some rows are stored.
    pub shape: Vec<usize>,
    /// The stored values as float32; integers stay empty here.
    pub values: Vec<f32>,
    /// The stored values of an integer tensor.
    pub ids: Vec<i64>,
    /// The number format in the file: `F32`, `BF16`, `I64`.
    pub dtype: String,
    /// Every how manyth row is stored; 1 if all are.
    pub row_stride: usize,
    /// The number of values in a row.
    pub row_width: usize,
}

impl Golden {
    /// The tensors of `golden/<case>.safetensors`. Panics with the file's name if it cannot be read.
    pub fn load(case: &str) -> Self {
        let path = crate::data_dir().join("golden").join(format!("{case}.safetensors"));
        Self::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// The tensors of a file.
    pub fn read(path: &Path) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let case = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { case, tensors: read_tensors(path)? })
    }

    /// A tensor by name. Panics with the names that there are if it is missing.
    pub fn tensor(&self, name: &str) -> &GoldenTensor {
        let names: Vec<_> = self.names().collect();
        self.tensors
            .get(name)
            .unwrap_or_else(|| panic!("case `{}` has no `{name}`, only {names:?}", self.case))
    }

    /// A tensor by name, if it is stored.
    pub fn find(&self, name: &str) -> Option<&GoldenTensor> {
        self.tensors.get(name)
    }

    /// The names of all stored tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }
}

impl GoldenTensor {
    /// The largest absolute difference to `whole`, which has all rows in the order of [`shape`](Self::shape).
    /// A NaN anywhere gives infinity.
    pub fn max_abs_diff(&self, whole: &[f32]) -> f32 {
        max_abs_diff(&self.values, &self.stored_rows(whole))
    }

    /// The rows of `whole` that are stored here.
    pub fn stored_rows(&self, whole: &[f32]) -> Vec<f32> {
        let expected: usize = self.shape.iter().product();
        assert_eq!(whole.len(), expected, "a tensor of shape {:?} has {expected} values", self.shape);
        whole.chunks(self.row_width).step_by(self.row_stride).flatten().copied().collect()
    }

    /// The values of a tensor that is stored whole; panics if it is not.
    pub fn whole(&self) -> &[f32] {
        assert_eq!(self.row_stride, 1, "only every {}th row is stored", self.row_stride);
        &self.values
    }
}

fn read_tensors(
    path: &Path,
) -> Result<BTreeMap<String, GoldenTensor>, Box<dyn std::error::Error + Send + Sync>> {
    let bytes = std::fs::read(path)?;
    let (_, header) = SafeTensors::read_metadata(&bytes)?;
    let notes = header.metadata().clone().unwrap_or_default();
    let stride = notes.get("row_stride").map_or(Ok(1), |text| text.parse())?;
    let mut tensors = BTreeMap::new();
    for (name, view) in SafeTensors::deserialize(&bytes)?.iter() {
        let whole = notes.get(&format!("shape.{name}"));
        let shape = match whole {
            Some(text) => text.split('x').map(str::parse).collect::<Result<_, _>>()?,
            None => view.shape().to_vec(),
        };
        let (values, ids) = decode(view.dtype(), view.data())?;
        let tensor = GoldenTensor {
            shape,
            values,
            ids,
            dtype: format!("{:?}", view.dtype()),
            row_stride: if whole.is_some() { stride } else { 1 },
            row_width: view.shape().last().copied().unwrap_or(1).max(1),
        };
        tensors.insert(name.to_owned(), tensor);
    }
    Ok(tensors)
}

fn decode(dtype: Dtype, data: &[u8]) -> Result<(Vec<f32>, Vec<i64>), String> {
    let floats = match dtype {
        Dtype::F32 => elements(data, f32::from_le_bytes),
        Dtype::BF16 => elements(data, |bytes| bf16::from_le_bytes(bytes).to_f32()),
        Dtype::F16 => elements(data, |bytes| f16::from_le_bytes(bytes).to_f32()),
        Dtype::I64 => return Ok((Vec::new(), elements(data, i64::from_le_bytes))),
        other => return Err(format!("number format {other:?} is not used in test data")),
    };
    Ok((floats, Vec::new()))
}

fn elements<const N: usize, T>(data: &[u8], decode: impl Fn([u8; N]) -> T) -> Vec<T> {
    data.as_chunks::<N>().0.iter().map(|bytes| decode(*bytes)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::sha256_f32;

    #[test]
    fn whole_tensors_have_the_bits_of_the_manifest() {
        let golden = Golden::load("dev_seq64");
        let manifest = crate::manifest();
        for name in ["latents_2", "pooled", "prompt_embeds"] {
            let expected =
                manifest["dev_seq64"]["tensors"][name]["sha256_f32"].as_str().expect("it is listed");
            assert_eq!(sha256_f32(golden.tensor(name).whole()), expected, "{name}");
        }
        assert_eq!(golden.tensor("clip_ids").ids.len(), 77);
        assert_eq!(golden.tensor("clip_ids").ids[0], 49406);
    }

    #[test]
    fn sampled_tensors_compare_with_the_whole() {
        let golden = Golden::load("trace_dev_256");
        let tensor = golden.tensor("single_0.attn");
        assert_eq!(
            (tensor.shape.as_slice(), tensor.row_width, tensor.row_stride),
            ([1, 320, 128].as_slice(), 128, 3)
        );
        let mut whole = vec![0.0; 320 * 128];
        for (i, row) in tensor.values.chunks(128).enumerate() {
            whole[i * 3 * 128..][..128].copy_from_slice(row);
        }
        assert_eq!(tensor.max_abs_diff(&whole), 0.0);
        whole[3 * 128 + 5] += 0.5;
        assert_eq!(tensor.max_abs_diff(&whole), 0.5);
        let heads = golden.tensor("double_0.norm_q");
        assert_eq!((heads.shape.as_slice(), heads.row_width), ([1, 256, 4, 32].as_slice(), 128));
    }
}
