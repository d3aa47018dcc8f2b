"""DashVector's codes by name, and the refusal that operations raise. Over HTTP it is a body inside status 200."""

from typing import Final

SUCCESS: Final = 0

CODES: Final[dict[str, int]] = {
    "Timeout": 408,
    "EmptyCollectionName": -2000,
    "EmptyColumnName": -2001,
    "EmptyPartitionName": -2002,
    "EmptyColumns": -2003,
    "EmptyPrimaryKey": -2004,
    "EmptyDocList": -2005,
    "EmptyDocFields": -2006,
    "EmptyIndexField": -2007,
    "InvalidRecord": -2008,
    "InvalidQuery": -2009,
    "InvalidWriteRequest": -2010,
    "InvalidVectorFormat": -2011,
    "InvalidDataType": -2012,
    "InvalidIndexType": -2013,
    "InvalidFeature": -2014,
    "InvalidFilter": -2015,
    "InvalidPrimaryKey": -2016,
    "InvalidField": -2017,
    "MismatchedIndexColumn": -2018,
    "MismatchedDimension": -2019,
    "MismatchedDataType": -2020,
    "InexistentCollection": -2021,
    "InexistentPartition": -2022,
    "InexistentColumn": -2023,
    "InexistentKey": -2024,
    "DuplicateCollection": -2025,
    "DuplicatePartition": -2026,
    "DuplicateKey": -2027,
    "DuplicateField": -2028,
    "UnreadyPartition": -2029,
    "UnreadyCollection": -2030,
    "UnsupportedCondition": -2031,
    "OrderbyNotInSelectItems": -2032,
    "PbToSqlInfoError": -2033,
    "ExceedRateLimit": -2034,
    "InvalidSparseValues": -2035,
    "InvalidBatchSize": -2036,
    "InvalidDimension": -2037,
    "InvalidExtraParam": -2038,
    "InvalidRadius": -2039,
    "InvalidLinear": -2040,
    "InvalidTopk": -2041,
    "InvalidCollectionName": -2042,
    "InvalidPartitionName": -2043,
    "InvalidFieldName": -2044,
    "InvalidChannelCount": -2045,
    "InvalidReplicaCount": -2046,
    "InvalidJson": -2047,
    "InvalidGroupBy": -2053,
    "InvalidSparseIndices": -2951,
    "ExceedIdsLimit": -2967,
    "InvalidVectorType": -2968,
    "ExceedRequestSize": -2970,
    "ExistVectorAndId": -2973,
    "InvalidArgument": -2999,
}
_NAMES: Final = {code: name for name, code in CODES.items()}

# Which status the vendor uses for which failure is not known; these are the plain readings of the names.
_NOT_FOUND: Final = {"InexistentCollection", "InexistentPartition", "InexistentColumn", "InexistentKey"}
_EXISTS: Final = {"DuplicateCollection", "DuplicatePartition", "DuplicateKey", "DuplicateField"}
_UNREADY: Final = {"UnreadyCollection", "UnreadyPartition"}


class DashVectorRefusal(Exception):  # noqa: N818 (a refusal is an answer, not an error of the simulator)
    """Raised to answer with a code; the message is the code's name unless there is more to say."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class UnauthorizedRefusal(DashVectorRefusal):
    """The token is missing or wrong. How that is answered is a setting, because nobody has seen the vendor do it."""


def refusal(name: str, detail: str = "") -> DashVectorRefusal:
    """The refusal of that name, to be raised; *detail* follows the name in the message."""
    return DashVectorRefusal(CODES[name], f"{name}: {detail}" if detail else name)


def code_name(code: int) -> str:
    """The name of *code*; the number itself when it has none."""
    return _NAMES.get(code, str(code))


def grpc_status_name(code: int) -> str:
    """The gRPC status that a refusal travels under when refusals are statuses."""
    name = code_name(code)
    if name in _NOT_FOUND:
        return "NOT_FOUND"
    if name in _EXISTS:
        return "ALREADY_EXISTS"
    if name in _UNREADY:
        return "FAILED_PRECONDITION"
    if name == "ExceedRateLimit":
        return "RESOURCE_EXHAUSTED"
    return "DEADLINE_EXCEEDED" if name == "Timeout" else "INVALID_ARGUMENT"
