//! Tensors as blocks of device memory.

use burn::backend::DispatchDevice;
use burn::tensor::{DType, Device, DeviceType, Tensor};
use burn_cubecl::{Cube, CubeBackend, cubecl::cuda::CudaRuntime, tensor::CubeTensor};
use cubecl_server::runtime::Runtime;

fn probe<const D: usize>(t: Tensor<D>) -> u64 {
    let _ = Device::enumerate(DeviceType::Cuda).into_vec();
    let _ = matches!(t.device().as_dispatch(), DispatchDevice::Cube(_));
    let fused = t.try_into_primitive::<Cube>().expect("a float tensor on a CUDA device");
    let client = fused.client.clone();
    let cube: CubeTensor = client.resolve_tensor_float::<CubeBackend>(fused);
    let cube = burn_cubecl::kernel::into_contiguous(cube);
    let held = cube.client.get_resource::<<CudaRuntime as Runtime>::Server>(cube.handle.clone());
    held.expect("a device allocation").resource().ptr
}
