from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class HistoryProduct(_message.Message):
    __slots__ = ("item_id", "weight")
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    item_id: str
    weight: float
    def __init__(self, item_id: _Optional[str] = ..., weight: _Optional[float] = ...) -> None: ...

class Filters(_message.Message):
    __slots__ = ("category", "brand", "price_from", "price_to", "merchant_id", "exclude", "minimum_score")
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    BRAND_FIELD_NUMBER: _ClassVar[int]
    PRICE_FROM_FIELD_NUMBER: _ClassVar[int]
    PRICE_TO_FIELD_NUMBER: _ClassVar[int]
    MERCHANT_ID_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_FIELD_NUMBER: _ClassVar[int]
    MINIMUM_SCORE_FIELD_NUMBER: _ClassVar[int]
    category: str
    brand: str
    price_from: float
    price_to: float
    merchant_id: str
    exclude: _containers.RepeatedScalarFieldContainer[str]
    minimum_score: float
    def __init__(self, category: _Optional[str] = ..., brand: _Optional[str] = ..., price_from: _Optional[float] = ..., price_to: _Optional[float] = ..., merchant_id: _Optional[str] = ..., exclude: _Optional[_Iterable[str]] = ..., minimum_score: _Optional[float] = ...) -> None: ...

class RecommendRequest(_message.Message):
    __slots__ = ("history", "attributes", "k", "tail_dial", "filters", "reasons", "user_id")
    class AttributesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    TAIL_DIAL_FIELD_NUMBER: _ClassVar[int]
    FILTERS_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    history: _containers.RepeatedCompositeFieldContainer[HistoryProduct]
    attributes: _containers.ScalarMap[str, str]
    k: int
    tail_dial: float
    filters: Filters
    reasons: bool
    user_id: str
    def __init__(self, history: _Optional[_Iterable[_Union[HistoryProduct, _Mapping]]] = ..., attributes: _Optional[_Mapping[str, str]] = ..., k: _Optional[int] = ..., tail_dial: _Optional[float] = ..., filters: _Optional[_Union[Filters, _Mapping]] = ..., reasons: _Optional[bool] = ..., user_id: _Optional[str] = ...) -> None: ...

class BatchRequest(_message.Message):
    __slots__ = ("requests",)
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    requests: _containers.RepeatedCompositeFieldContainer[RecommendRequest]
    def __init__(self, requests: _Optional[_Iterable[_Union[RecommendRequest, _Mapping]]] = ...) -> None: ...

class SimilarRequest(_message.Message):
    __slots__ = ("item_id", "k", "filters")
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    FILTERS_FIELD_NUMBER: _ClassVar[int]
    item_id: str
    k: int
    filters: Filters
    def __init__(self, item_id: _Optional[str] = ..., k: _Optional[int] = ..., filters: _Optional[_Union[Filters, _Mapping]] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("item_id", "history", "attributes", "user_id")
    class AttributesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    item_id: str
    history: _containers.RepeatedCompositeFieldContainer[HistoryProduct]
    attributes: _containers.ScalarMap[str, str]
    user_id: str
    def __init__(self, item_id: _Optional[str] = ..., history: _Optional[_Iterable[_Union[HistoryProduct, _Mapping]]] = ..., attributes: _Optional[_Mapping[str, str]] = ..., user_id: _Optional[str] = ...) -> None: ...

class ReasonPart(_message.Message):
    __slots__ = ("kind", "label", "value")
    KIND_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    kind: str
    label: str
    value: float
    def __init__(self, kind: _Optional[str] = ..., label: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...

class Reasons(_message.Message):
    __slots__ = ("item_id", "score", "parts", "words")
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    WORDS_FIELD_NUMBER: _ClassVar[int]
    item_id: str
    score: float
    parts: _containers.RepeatedCompositeFieldContainer[ReasonPart]
    words: str
    def __init__(self, item_id: _Optional[str] = ..., score: _Optional[float] = ..., parts: _Optional[_Iterable[_Union[ReasonPart, _Mapping]]] = ..., words: _Optional[str] = ...) -> None: ...

class Explained(_message.Message):
    __slots__ = ("item_id", "score", "parts", "words", "unknown_items")
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    WORDS_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_ITEMS_FIELD_NUMBER: _ClassVar[int]
    item_id: str
    score: float
    parts: _containers.RepeatedCompositeFieldContainer[ReasonPart]
    words: str
    unknown_items: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, item_id: _Optional[str] = ..., score: _Optional[float] = ..., parts: _Optional[_Iterable[_Union[ReasonPart, _Mapping]]] = ..., words: _Optional[str] = ..., unknown_items: _Optional[_Iterable[str]] = ...) -> None: ...

class Listed(_message.Message):
    __slots__ = ("rank", "item_id", "score", "tail", "product", "reasons", "own_item_ids", "outside_catalogue")
    class ProductEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    RANK_FIELD_NUMBER: _ClassVar[int]
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    TAIL_FIELD_NUMBER: _ClassVar[int]
    PRODUCT_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    OWN_ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    OUTSIDE_CATALOGUE_FIELD_NUMBER: _ClassVar[int]
    rank: int
    item_id: str
    score: float
    tail: bool
    product: _containers.ScalarMap[str, str]
    reasons: Reasons
    own_item_ids: _containers.RepeatedScalarFieldContainer[str]
    outside_catalogue: bool
    def __init__(self, rank: _Optional[int] = ..., item_id: _Optional[str] = ..., score: _Optional[float] = ..., tail: _Optional[bool] = ..., product: _Optional[_Mapping[str, str]] = ..., reasons: _Optional[_Union[Reasons, _Mapping]] = ..., own_item_ids: _Optional[_Iterable[str]] = ..., outside_catalogue: _Optional[bool] = ...) -> None: ...

class RecommendResponse(_message.Message):
    __slots__ = ("version", "items", "tail_share", "tail_share_undialled", "score_kept", "unknown_items", "adapted_at", "known_customer", "notes")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    TAIL_SHARE_FIELD_NUMBER: _ClassVar[int]
    TAIL_SHARE_UNDIALLED_FIELD_NUMBER: _ClassVar[int]
    SCORE_KEPT_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_ITEMS_FIELD_NUMBER: _ClassVar[int]
    ADAPTED_AT_FIELD_NUMBER: _ClassVar[int]
    KNOWN_CUSTOMER_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    version: int
    items: _containers.RepeatedCompositeFieldContainer[Listed]
    tail_share: float
    tail_share_undialled: float
    score_kept: float
    unknown_items: _containers.RepeatedScalarFieldContainer[str]
    adapted_at: str
    known_customer: bool
    notes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, version: _Optional[int] = ..., items: _Optional[_Iterable[_Union[Listed, _Mapping]]] = ..., tail_share: _Optional[float] = ..., tail_share_undialled: _Optional[float] = ..., score_kept: _Optional[float] = ..., unknown_items: _Optional[_Iterable[str]] = ..., adapted_at: _Optional[str] = ..., known_customer: _Optional[bool] = ..., notes: _Optional[_Iterable[str]] = ...) -> None: ...

class BatchResponse(_message.Message):
    __slots__ = ("version", "responses")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    RESPONSES_FIELD_NUMBER: _ClassVar[int]
    version: int
    responses: _containers.RepeatedCompositeFieldContainer[RecommendResponse]
    def __init__(self, version: _Optional[int] = ..., responses: _Optional[_Iterable[_Union[RecommendResponse, _Mapping]]] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ModelInfo(_message.Message):
    __slots__ = ("version", "served", "published_at", "private", "epsilon", "delta", "unit", "catalogue_fingerprint", "forced", "trust", "server_round", "pinned", "name")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SERVED_FIELD_NUMBER: _ClassVar[int]
    PUBLISHED_AT_FIELD_NUMBER: _ClassVar[int]
    PRIVATE_FIELD_NUMBER: _ClassVar[int]
    EPSILON_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    CATALOGUE_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    FORCED_FIELD_NUMBER: _ClassVar[int]
    TRUST_FIELD_NUMBER: _ClassVar[int]
    SERVER_ROUND_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    version: int
    served: bool
    published_at: str
    private: bool
    epsilon: float
    delta: float
    unit: str
    catalogue_fingerprint: str
    forced: _containers.RepeatedScalarFieldContainer[str]
    trust: str
    server_round: int
    pinned: bool
    name: str
    def __init__(self, version: _Optional[int] = ..., served: _Optional[bool] = ..., published_at: _Optional[str] = ..., private: _Optional[bool] = ..., epsilon: _Optional[float] = ..., delta: _Optional[float] = ..., unit: _Optional[str] = ..., catalogue_fingerprint: _Optional[str] = ..., forced: _Optional[_Iterable[str]] = ..., trust: _Optional[str] = ..., server_round: _Optional[int] = ..., pinned: _Optional[bool] = ..., name: _Optional[str] = ...) -> None: ...

class ModelList(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[ModelInfo]
    def __init__(self, models: _Optional[_Iterable[_Union[ModelInfo, _Mapping]]] = ...) -> None: ...

class PrivacyRequest(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: int
    def __init__(self, version: _Optional[int] = ...) -> None: ...

class PrivacyResponse(_message.Message):
    __slots__ = ("version", "statement", "statement_json")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STATEMENT_FIELD_NUMBER: _ClassVar[int]
    STATEMENT_JSON_FIELD_NUMBER: _ClassVar[int]
    version: int
    statement: str
    statement_json: str
    def __init__(self, version: _Optional[int] = ..., statement: _Optional[str] = ..., statement_json: _Optional[str] = ...) -> None: ...
