"""
Every refusal the vendor is known to give, by name, in its native and its OpenAI-compatible shape.

A name is short ("rate_quota") and then takes the shape of the path that was asked, or it is the name of a sample
("error_429_rate_quota", "compat_error_429_limit_requests") and then has that sample's shape on every path.
"""

from dataclasses import dataclass, replace
from typing import Final

from tests.vendor_sim.answers import compact


@dataclass(frozen=True, slots=True)
class ErrorSpec:
    """One refusal. Where the compatible words are not known, the native ones stand in."""

    status: int
    code: str
    message: str
    compat_code: str = ""
    compat_message: str = ""
    compat_type: str = ""
    has_compat_request_id: bool = True

    def body(self, request_id: str, *, is_compatible: bool) -> bytes:
        """The exact bytes of the refusal."""
        if not is_compatible:
            return compact({"code": self.code, "message": self.message, "request_id": request_id})
        code = self.compat_code or self.code
        error = {
            "message": self.compat_message or self.message,
            "type": self.compat_type or code,
            "param": None,
            "code": code,
        }
        tail = {"request_id": request_id} if self.has_compat_request_id else {}
        return compact({"error": error, **tail})


class VendorError(Exception):
    """Raised by an operation to refuse; *shape* None lets the path decide between native and compatible."""

    def __init__(self, spec: ErrorSpec, *, is_compatible: bool | None = None) -> None:
        super().__init__(spec.code)
        self.spec = spec
        self.is_compatible = is_compatible


_INVALID: Final = "<400> InternalError.Algo.InvalidParameter: Value error, {}"
_QUOTA_MESSAGE: Final = "You exceeded your current quota, please check your plan and billing details."
_BURST_MESSAGE: Final = (
    "Request rate increased too quickly. To ensure system stability, "
    "please adjust your client logic to scale requests more smoothly over time."
)


def _parameter(message: str, code: str = "InvalidParameter") -> ErrorSpec:
    return ErrorSpec(400, code, message, "invalid_parameter_error", compat_type="invalid_request_error")


_REQUEST_ERRORS: Final = {
    "invalid_parameter": _parameter(_INVALID.format("contents is neither str nor list of str.: input.contents")),
    "batch_size": _parameter(
        _INVALID.format("batch size is invalid, it should not be larger than 10.: input.contents")
    ),
    "malformed_body": _parameter("Required body invalid, please check the request body format."),
    "empty_input": _parameter("Required input parameter missing from request.", "BadRequest.EmptyInput"),
    "empty_model": _parameter("Required parameter model missing from request.", "BadRequest.EmptyModel"),
    "empty_parameters": _parameter("Required parameters missing from request.", "BadRequest.EmptyParameters"),
    "illegal_input": _parameter("Input is illegal.", "BadRequest.IllegalInput"),
    "too_large": _parameter("Payload Too Large.", "BadRequest.TooLarge"),
    "input_download_failed": _parameter("Failed to download the input file.", "BadRequest.InputDownloadFailed"),
    "invalid_url": _parameter("Invalid URL provided in your request.", "InvalidURL"),
    "invalid_parameter_data_inspection": _parameter(
        "Unable to download the media resource during the data inspection process.", "InvalidParameter.DataInspection"
    ),
    "unsupported_operation": _parameter(
        "Failed to cancel the task, as the task is not pending.", "UnsupportedOperation"
    ),
    "client_disconnect": ErrorSpec(400, "ClientDisconnect", "Client disconnected before task finished!"),
    "data_inspection_failed": ErrorSpec(
        400, "DataInspectionFailed", "Input data may contain inappropriate content.", "data_inspection_failed"
    ),
}

_ACCOUNT_ERRORS: Final = {
    "arrearage": ErrorSpec(
        400, "Arrearage", "Access denied, please make sure your account is in good standing.", "Arrearage"
    ),
    "invalid_api_key": ErrorSpec(
        401,
        "InvalidApiKey",
        "Invalid API-key provided.",
        "invalid_api_key",
        "Incorrect API key provided. ",
        "invalid_request_error",
        has_compat_request_id=False,
    ),
    "not_authorized": ErrorSpec(401, "NOT AUTHORIZED", "Access denied: Either you are not authorized."),
    "access_denied": ErrorSpec(403, "AccessDenied", "Current user api does not support asynchronous calls."),
    "unpurchased": ErrorSpec(403, "AccessDenied.Unpurchased", "Access to model denied. Please purchase it first."),
    "model_access_denied": ErrorSpec(403, "Model.AccessDenied", "Model access denied."),
    "app_access_denied": ErrorSpec(403, "App.AccessDenied", "App access denied."),
    "workspace_access_denied": ErrorSpec(403, "Workspace.AccessDenied", "Workspace access denied."),
    "free_tier_only": ErrorSpec(
        403, "AllocationQuota.FreeTierOnly", "The free tier of the model has been exhausted.", "insufficient_quota"
    ),
    "model_not_found": ErrorSpec(404, "ModelNotFound", "Model not exist.", "model_not_found"),
    "model_not_supported": ErrorSpec(404, "ModelNotFound", "Unsupported model.", "model_not_supported"),
    "workspace_not_found": ErrorSpec(404, "WorkSpaceNotFound", "WorkSpace can not be found."),
    "not_found": ErrorSpec(404, "NotFound", "Not found!"),
}

_RATE_ERRORS: Final = {
    "throttling": ErrorSpec(429, "Throttling", "Requests throttling triggered.", "throttling"),
    "rate_quota": ErrorSpec(
        429,
        "Throttling.RateQuota",
        "Requests rate limit exceeded, please try again later.",
        "limit_requests",
        "You exceeded your current requests list.",
    ),
    "burst_rate": ErrorSpec(429, "Throttling.BurstRate", _BURST_MESSAGE, "limit_burst_rate"),
    "allocation_quota": ErrorSpec(
        429,
        "Throttling.AllocationQuota",
        "Allocated quota exceeded, please increase your quota limit.",
        "insufficient_quota",
        _QUOTA_MESSAGE,
    ),
    "commodity_not_purchased": ErrorSpec(429, "CommodityNotPurchased", "Commodity has not been purchased yet."),
    "prepaid_bill_overdue": ErrorSpec(429, "PrepaidBillOverdue", "The prepaid bill is overdue."),
    "postpaid_bill_overdue": ErrorSpec(429, "PostpaidBillOverdue", "The postpaid bill is overdue."),
}


def _internal(code: str, message: str, status: int = 500) -> ErrorSpec:
    return ErrorSpec(status, code, message, "internal_error")


# "occured" is the vendor's spelling.
_INTERNAL_MESSAGE: Final = "An internal error has occured, please try again later or contact service support."

_SERVER_ERRORS: Final = {
    "internal": _internal("InternalError", _INTERNAL_MESSAGE),
    "internal_algo": _internal("InternalError.Algo", "inference internal error."),
    "internal_timeout": _internal("InternalError.Timeout", _INTERNAL_MESSAGE),
    "system_error": _internal("SystemError", "An system error has occured, please try again later."),
    "model_service_failed": _internal("ModelServiceFailed", "Failed to request model service."),
    "request_timeout": _internal("RequestTimeOut", "Request timed out, please try again later."),
    "response_timeout": _internal("ResponseTimeout", "Response timeout!"),
    "model_serving_error": _internal("ModelServingError", "Model serving error.", 503),
    "model_unavailable": _internal("ModelUnavailable", "Model is unavailable, please try again later.", 503),
}

ERRORS: Final = {**_REQUEST_ERRORS, **_ACCOUNT_ERRORS, **_RATE_ERRORS, **_SERVER_ERRORS}

# The samples name compatible errors by the words of their body.
_COMPATIBLE_NAMES: Final = {
    "compat_error_401": "invalid_api_key",
    "compat_error_429_limit_requests": "rate_quota",
    "compat_error_429_insufficient_quota": "allocation_quota",
    "compat_error_429_burst_rate": "burst_rate",
    "compat_error_400_arrearage": "arrearage",
}
_NATIVE_NAMES: Final = {f"error_{spec.status}_{name}": name for name, spec in ERRORS.items()}


def named_error(name: str) -> VendorError:
    """The error of that short or sample name; KeyError when there is none."""
    if name in _COMPATIBLE_NAMES:
        return VendorError(ERRORS[_COMPATIBLE_NAMES[name]], is_compatible=True)
    if name in _NATIVE_NAMES:
        return VendorError(ERRORS[_NATIVE_NAMES[name]], is_compatible=False)
    return VendorError(ERRORS[name])


def refuse(name: str, message: str | None = None) -> VendorError:
    """The error of that name to raise from an operation, with another *message* where the vendor's varies."""
    spec = ERRORS[name]
    if message is None:
        return VendorError(spec)
    return VendorError(replace(spec, message=message, compat_message=""))


def invalid_value(message: str) -> VendorError:
    """A 400 whose message has the usual frame around *message*."""
    return refuse("invalid_parameter", _INVALID.format(message))
