"""What a user has today, in its essence: a FastAPI server that authenticates in its own process.

The rules are Tollgate's: a bearer token is asked about at lum.id, an active answer is remembered for 60 s and never past the
token's end, 401 for what lum.id does not accept, 503 while it cannot be asked. What is its own: one process, one cache of it,
and a new HTTP client for each token that is not in the cache.

    LUM_ID_BASE_URL=http://127.0.0.1:7001 uvicorn app:app          with authentication
    AUTHENTICATION=off                    uvicorn app:app          without
"""

import os
import time
from typing import Annotated

import httpx
from fastapi import Depends, FastAPI, Header, HTTPException

LUM_ID = os.environ.get("LUM_ID_BASE_URL", "https://lum.id").rstrip("/")
TTL_SECS = 60.0
TIMEOUT_SECS = 3.0
MOST_ENTRIES = 10_000

app = FastAPI(openapi_url=None)
# Token -> (its principal, when that ends).
cache: dict[str, tuple[dict, float]] = {}


def unauthorized(detail: str, challenge: str) -> HTTPException:
    return HTTPException(401, detail, headers={"WWW-Authenticate": challenge})


async def introspect(token: str) -> dict:
    try:
        async with httpx.AsyncClient(timeout=TIMEOUT_SECS, trust_env=False) as client:
            answer = await client.post(f"{LUM_ID}/oauth/introspect", data={"token": token})
        if answer.status_code != 200:
            raise ValueError(f"status {answer.status_code}")
        told = answer.json()
        if not isinstance(told, dict) or not isinstance(told.get("active"), bool):
            raise ValueError("not the agreed JSON")
        return told
    except (httpx.HTTPError, ValueError) as error:
        raise HTTPException(503, "Identity provider unavailable", headers={"Retry-After": "2"}) from error


async def principal(authorization: Annotated[str | None, Header()] = None) -> dict:
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not token or "," in token or len(token) > 8192:
        raise unauthorized("Missing bearer token", "Bearer")
    now = time.time()
    known = cache.get(token)
    if known and known[1] > now:
        return known[0]
    told = await introspect(token)
    if not told["active"] or not told.get("sub"):
        raise unauthorized("No identity provider accepted the token", 'Bearer error="invalid_token"')
    end = min(now + TTL_SECS, told.get("exp") or float("inf"))
    if len(cache) >= MOST_ENTRIES:
        del cache[next(iter(cache))]
    found = {"id": told["sub"], "scopes": told.get("scopes") or []}
    cache[token] = (found, end)
    return found


async def anybody() -> dict:
    return {"id": "admin", "scopes": ["*"]}


@app.get("/healthz")
async def healthz() -> dict:
    return {"ok": True}


@app.get("/api/v1/workflows")
async def workflows(who: Annotated[dict, Depends(anybody if os.environ.get("AUTHENTICATION") == "off" else principal)]) -> dict:
    return {"workflows": []}
