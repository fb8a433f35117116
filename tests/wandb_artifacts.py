"""Artifacts of the tests' W&B server: what its client sends of a file, and reads back."""

import json
from typing import Any

TAKEN = ("model",)  # types whose files are asked for; of the others (tables) the server has them already


class Artifacts:
    """Artifacts by their number, each with its files by name."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.found: list[dict[str, Any]] = []

    def answer(self, query: str, values: dict[str, Any]) -> dict[str, Any] | None:
        """Return the `data` of an answer about artifacts; None for another query."""
        if "ArtifactType(" in query:
            return {"project": {"artifact": None}}
        if "createArtifact(" in query:
            return {"createArtifact": {"artifact": self.create(values["input"])}}
        if "createArtifactManifest(" in query:
            artifact = self.found[int(values["artifactID"])]
            return {"createArtifactManifest": {"artifactManifest": self.manifest(artifact)}}
        if "updateArtifactManifest(" in query:
            artifact = self.found[int(values["artifactManifestID"])]
            return {"updateArtifactManifest": {"artifactManifest": self.manifest(artifact)}}
        if "createArtifactFiles(" in query:
            nodes = [self.file(about) for about in values["input"]["artifactFiles"]]
            return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}
        if "commitArtifact(" in query:
            artifact = self.found[int(values["artifactID"])]
            artifact["state"] = "COMMITTED"
            return {"commitArtifact": {"artifact": {"id": artifact["id"], "digest": artifact["digest"]}}}
        if "RunOutputArtifacts" in query:
            mine = [a for a in self.found if a["run"] == values.get("run") and a["state"] == "COMMITTED"]
            page = {"endCursor": None, "hasNextPage": False}
            edges = [{"node": self.public(artifact)} for artifact in mine]
            return {"project": {"run": {"artifacts": {"totalCount": len(mine), "pageInfo": page, "edges": edges}}}}
        if "ArtifactByID" in query:
            return {"artifact": self.public(self.found[int(values["id"])])}
        if "FetchArtifactManifest" in query:
            place = f"{self.url}/artifacts/{values['id']}/wandb_manifest.json"
            return {"artifact": {"currentManifest": {"file": {"directUrl": place}}}}
        return None

    def create(self, told: dict[str, Any]) -> dict[str, Any]:
        """Keep what a client says of an artifact; return what it is told."""
        number = str(len(self.found))
        taken = told["artifactTypeName"] in TAKEN
        artifact = {
            "id": number,
            "run": told["runName"],
            "type": told["artifactTypeName"],
            "name": told["artifactCollectionName"],
            "digest": told["digest"],
            "metadata": told.get("metadata"),
            "aliases": [about["alias"] for about in told.get("aliases") or []],
            "state": "PENDING" if taken else "ELSEWHERE",
            "files": {},
        }
        self.found.append(artifact)
        state = "PENDING" if taken else "COMMITTED"
        return {"id": number, "state": state, "artifactSequence": {"id": "s", "latestArtifact": None}}

    def manifest(self, artifact: dict[str, Any]) -> dict[str, Any]:
        """Return where the manifest of an artifact goes."""
        place = f"{self.url}/artifacts/{artifact['id']}/wandb_manifest.json"
        return {"id": artifact["id"], "file": {"id": "m", "uploadUrl": place, "uploadHeaders": []}}

    def file(self, about: dict[str, Any]) -> dict[str, Any]:
        """Return where a file of an artifact goes."""
        number, name = about["artifactID"], about["name"]
        place = f"{self.url}/artifacts/{number}/{name}"
        node = {"storagePath": f"{number}/{name}", "uploadUrl": place, "uploadHeaders": []}
        return node | {"uploadMultipartUrls": None, "artifact": {"id": number}}

    def take(self, number: str, name: str, data: bytes) -> None:
        """Keep a file."""
        self.found[int(number)]["files"][name] = data

    def public(self, artifact: dict[str, Any]) -> dict[str, Any]:
        """Return an artifact in the form of the client's fragment."""
        project = {"id": "p", "internalId": "1", "name": "roadmap", "entity": {"name": "team"}}
        collection = {"__typename": "ArtifactSequence", "name": artifact["name"], "project": project}
        aliases = [
            {"__typename": "ArtifactAlias", "id": name, "alias": name, "artifactCollection": collection}
            for name in ["v0", *artifact["aliases"]]
        ]
        files = {name: data for name, data in artifact["files"].items() if name != "wandb_manifest.json"}
        return {
            "__typename": "Artifact", "id": artifact["id"], "artifactSequence": collection, "versionIndex": 0,
            "artifactType": {"name": artifact["type"]}, "description": None,
            "metadata": artifact["metadata"] or json.dumps({}), "ttlDurationSeconds": -1, "ttlIsInherited": True,
            "tags": [], "historyStep": None, "state": artifact["state"], "size": sum(map(len, files.values())),
            "digest": artifact["digest"], "digestAlgorithm": "MANIFEST_MD5", "commitHash": "c",
            "fileCount": len(files), "createdAt": "2026-01-01T00:00:00Z", "updatedAt": "2026-01-01T00:00:00Z",
            "aliases": aliases,
        }  # fmt: skip
