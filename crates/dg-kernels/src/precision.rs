//! How results are rounded.

/// How the result of an operation is rounded. Storage is f32 either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// IEEE single: no rounding beyond the arithmetic itself.
    F32,
    /// Results are rounded to the nearest bfloat16, ties to even, and kept as f32 with a zero lower
    /// half. Inputs are expected to hold bfloat16 values already.
    Bf16,
}
