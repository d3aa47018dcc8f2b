"""Made-up users and projects, as the benchmarks and the demo embed, store and match them: always the same ones."""

import random
from dataclasses import dataclass
from typing import Literal

Side = Literal["users", "projects"]

SIDES: tuple[Side, Side] = ("users", "projects")
"""Also the names of the collections: users look for projects, projects for users."""

FIELDS: dict[str, type] = {"title": str, "city": str, "rate": int, "remote": bool}
"""What a document has beside its vector; a match shows all of it."""

_ROLES = ("backend engineer", "data analyst", "product designer", "site reliability engineer", "mobile developer")
_SKILLS = ("Go", "Kafka", "PostgreSQL", "React", "Rust", "Figma", "Spark", "Kubernetes", "Swift", "Terraform", "SQL")
_CITIES = ("Berlin", "Hangzhou", "Lisbon", "Nairobi", "Toronto", "Osaka", "Porto Alegre", "Tallinn")
_SUBJECTS = ("a marketplace", "a clinic's bookings", "route planning", "fraud alerts", "a museum's archive", "payroll")


@dataclass(frozen=True, slots=True)
class Profile:
    """One user or project; a new *version* has another text, so another vector, under the same id."""

    side: Side
    number: int
    version: int = 0

    @property
    def id(self) -> str:
        """The document's id."""
        return f"{self.side[:-1]}-{self.number:05}"

    @property
    def others(self) -> Side:
        """The collection in which its matches are."""
        return SIDES[1 - SIDES.index(self.side)]

    @property
    def updated(self) -> "Profile":
        """The same one, rewritten."""
        return Profile(self.side, self.number, self.version + 1)

    @property
    def text(self) -> str:
        """What is embedded."""
        chance = self._chance()
        role, skills, city = chance.choice(_ROLES), ", ".join(chance.sample(_SKILLS, 3)), chance.choice(_CITIES)
        if self.side == "users":
            said = f"{role} in {city}, {chance.randint(1, 25)} years with {skills}"
        else:
            said = f"{chance.choice(_SUBJECTS)} in {city} needs a {role} who knows {skills}"
        return f"{said} ({self.id}, revision {self.version})"

    @property
    def fields(self) -> dict[str, str | int | bool]:
        """The document's fields, about 80 bytes of JSON."""
        chance = self._chance()
        title = chance.choice(_ROLES if self.side == "users" else _SUBJECTS)
        city, rate = chance.choice(_CITIES), 5 * chance.randint(6, 40)
        return {"title": title, "city": city, "rate": rate, "remote": chance.random() < 0.5}

    def _chance(self) -> random.Random:
        return random.Random(f"{self.side} {self.number} {self.version}")


def everybody(users: int, projects: int) -> list[Profile]:
    """So many of each, the users first."""
    return [Profile("users", number) for number in range(users)] + [
        Profile("projects", number) for number in range(projects)
    ]


def popularity(count: int) -> list[float]:
    """Zipf's law: the n-th is asked for 1/n as often as the first."""
    return [1 / rank for rank in range(1, count + 1)]
