"""The deployment that speaks HTTP: Open Inference Protocol v2, in JSON and binary form."""

# Ray Serve makes these methods anew for FastAPI, which then can't tell what a string names.

from http import HTTPStatus

from fastapi import FastAPI
from ray import serve
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from agent import __version__
from agent.job import JobError
from agent.routes import fitting
from agent.routes.messages import TensorSpec
from agent.wire import tensors
from oip_serve import bodies
from oip_serve.replica import FailedError

EXTENSIONS = ["binary_tensor_data"]

api = FastAPI(openapi_url=None)


class NoModelError(Exception):
    """There is no model of this name, or it can't be loaded."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@api.exception_handler(NoModelError)
async def _no_model(_: Request, error: NoModelError) -> Response:
    return bodies.refusal(error.status, str(error))


@serve.ingress(api)
class Gateway:
    """Takes requests, checks them, hands their tensors to `Models` and encodes what comes back."""

    def __init__(self, models: DeploymentHandle, names: list[str], max_body_bytes: int) -> None:
        # A request's tensors go with the call, not by way of the object store.
        self._models = {
            name: models.options(multiplexed_model_id=name, _by_reference=False) for name in names
        }
        self._max_body_bytes = max_body_bytes
        self._specs: dict[str, tuple[list[TensorSpec], list[TensorSpec]]] = {}

    @api.get("/v2")
    async def server(self) -> Response:
        """Describe the server."""
        return JSONResponse(
            {"name": "edgewise-ray-serve", "version": __version__, "extensions": EXTENSIONS}
        )

    @api.get("/v2/health/live")
    async def live(self) -> Response:
        """Tell that the server is there."""
        return JSONResponse({"live": True})

    @api.get("/v2/health/ready")
    async def ready(self) -> Response:
        """Tell that it serves: Ray Serve lets no request in before all deployments do."""
        return JSONResponse({"ready": True})

    @api.get("/v2/models/{model}")
    async def metadata(self, model: str) -> Response:
        """Describe a model."""
        takes, gives = await self._described(model)
        ports = {
            section: [
                {"name": spec.name, "datatype": spec.datatype, "shape": spec.shape}
                for spec in specs
            ]
            for section, specs in (("inputs", takes), ("outputs", gives))
        }
        return JSONResponse({"name": model, "versions": [], "platform": "ray_serve", **ports})

    @api.get("/v2/models/{model}/ready")
    async def model_ready(self, model: str) -> Response:
        """Tell that a model can be loaded."""
        await self._described(model)
        return JSONResponse({"name": model, "ready": True})

    @api.post("/v2/models/{model}/infer")
    async def infer(self, model: str, request: Request) -> Response:
        """Run a model."""
        takes, gives = await self._described(model)
        try:
            body = await bodies.read(request, self._max_body_bytes)
            asked, inputs = bodies.decode(body, request.headers)
            wanted = {output.name for output in asked.outputs or ()}
            fitting.check(model, inputs, wanted, takes, gives)
        except bodies.TooLargeError as error:
            return bodies.refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, error.message)
        except JobError as error:
            return bodies.refusal(HTTPStatus.BAD_REQUEST, error.message)
        arrays = {tensor.name: tensors.to_array(tensor) for tensor in inputs}
        try:
            outputs = await self._models[model].infer.remote(model, arrays)
        except FailedError as error:
            return bodies.refusal(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))
        except BackPressureError:
            return bodies.refusal(HTTPStatus.SERVICE_UNAVAILABLE, "too many requests wait")
        return bodies.answer(model, asked, outputs)

    async def _described(self, model: str) -> tuple[list[TensorSpec], list[TensorSpec]]:
        if model not in self._models:
            raise NoModelError(HTTPStatus.NOT_FOUND, f"there is no model '{model}'")
        if model not in self._specs:
            try:
                self._specs[model] = await self._models[model].describe.remote(model)
            except FailedError as error:
                raise NoModelError(HTTPStatus.SERVICE_UNAVAILABLE, str(error)) from None
        return self._specs[model]
