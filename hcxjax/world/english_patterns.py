"""The English sentences of the world.

`{v:a}` is a role with its article, `{v:s}` in the plural, `{x:he}`, `{x:him}`, `{x:his}` a pronoun for a person.
"""

from hcxjax.world.wording import Wording

_WHO = ("{x}.",)

RELATIONS = {
    "home": Wording(
        "Home",
        (
            "{x} lives in {v}.",
            "{x}'s home is in {v}.",
            "{x} moved to {v} and still lives there.",
            "The town where {x} lives is {v}.",
        ),
        ("Where does {x} live?", "Where is {x}'s home?", "Which town does {x} live in?"),
        ("{v}.", "In {v}."),
        ("Who lives in {v}?", "Whose home is in {v}?"),
        _WHO,
    ),
    "job": Wording(
        "Job",
        ("{x} is {v:a}.", "{x} works as {v:a}.", "{x} became {v:a}.", "{x} earns a living as {v:a}."),
        ("What is {x}'s job?", "What does {x} do for a living?"),
        ("{v:a:cap}.",),
        ("Who is {v:a}?", "Who works as {v:a}?"),
        _WHO,
    ),
    "age": Wording(
        "Age",
        ("{x} is {v} years old.", "{x} turned {v} this year.", "{x} is {v}."),
        ("How old is {x}?", "What is {x}'s age?"),
        ("{v}.", "{v} years old."),
        ("Who is {v} years old?", "Who turned {v} this year?"),
        _WHO,
    ),
    "food": Wording(
        "Favorite food",
        (
            "{x} likes {v:s}.",
            "{x} often eats {v:s}.",
            "{x} loves {v:s} more than anything.",
            "{x} eats {v:s} every morning.",
        ),
        ("What does {x} like to eat?", "What food does {x} like?"),
        ("{v:s:cap}.",),
        ("Who likes {v:s}?", "Who often eats {v:s}?"),
        _WHO,
    ),
    "color": Wording(
        "Favorite color",
        ("{x}'s favorite color is {v}.", "{x} likes {v} best.", "The color that {x} likes is {v}."),
        ("What is {x}'s favorite color?", "Which color does {x} like?"),
        ("{v::cap}.",),
        ("Who likes {v}?", "Whose favorite color is {v}?"),
        _WHO,
    ),
    "hobby": Wording(
        "Hobby",
        ("{x}'s hobby is {v}.", "{x} enjoys {v} on weekends.", "These days {x} is learning {v}."),
        ("What is {x}'s hobby?", "What does {x} enjoy on days off?"),
        ("{v::cap}.",),
        ("Who enjoys {v}?", "Whose hobby is {v}?"),
        _WHO,
    ),
    "pet": Wording(
        "Animal",
        ("{x} has {v:a}.", "{x} keeps {v:a} at home.", "{x} lives with {v:a}.", "{x} takes care of {v:a} every day."),
        ("What animal does {x} have?", "Which animal does {x} keep?"),
        ("{v:a:cap}.",),
        ("Who has {v:a}?", "Who keeps {v:a}?"),
        _WHO,
    ),
    "made": Wording(
        "Made",
        (
            "{x} made {v:a}.",
            "{x} brought {v:a} that {x:he} had made.",
            "What {x} made was {v:a}.",
            "It was {x} who made {v:a}.",
        ),
        ("What did {x} make?", "Which thing did {x} make?"),
        ("{v:a:cap}.",),
        ("Who made the {v}?", "Who made {v:a}?"),
        _WHO,
    ),
    "older": Wording("", (), ("Who is older?", "Which of them is older?"), ("{x}.",)),
    "lost": Wording("", (), ("What did {x} lose?",), ("{v:a:cap}.",), ("Who lost the {v}?", "Who lost {v:a}?"), _WHO),
    "found": Wording("", (), ("What did {x} find?",), ("{v:a:cap}.",), ("Who found the {v}?",), _WHO),
    "found_at": Wording("", (), ("Where was the {x}?", "Where was the {x} found?"), ("At the {v}.",)),
    "bought": Wording("", (), ("What did {x} buy?", "What did {x} buy at the market?"), ("{v:s:cap}.",)),
    "chose": Wording("", (), ("What did {x} buy?", "What did {x} buy that day?"), ("{v:a:cap}.",)),
    "count": Wording("", (), ("How many did {x} buy?", "How many pieces did {x} buy?"), ("{v::cap}.",)),
    "paid": Wording("", (), ("How much did {x} pay?", "How much was it in all?"), ("{v} won.",)),
    "left": Wording("", (), ("How many did {x} have left?", "How many were left?"), ("{v::cap}.",)),
    "went": Wording("", (), ("Where did {x} go?", "Which town did {x} visit?"), ("{v}.",), ("Who went to {v}?",), _WHO),
    "vehicle": Wording("", (), ("How did {x} get there?", "How did {x} travel?"), ("By {v}.",)),
    "ate": Wording("", (), ("What did {x} eat?",), ("{v:s:cap}.",)),
    "gift": Wording("", (), ("What was the gift for {x}?", "What gift was {x} to get?"), ("{v:a:cap}.",)),
    "event_place": Wording("", (), ("Where was the {x} held?", "Which town held the {x}?"), ("{v}.",)),
    "event_day": Wording("", (), ("When was the {x} held?", "On which day was the {x} held?"), ("On {v}.",)),
    "met": Wording("", (), ("Who did {x} meet?", "Who was it that {x} met?"), ("{v}.",)),
    "won": Wording("", (), ("Who won the prize?", "Who won?"), ("{v}.",)),
    "stays": Wording("", (), ("Where is {x} now?", "Where did {x} write the letter?"), ("In {v}.",)),
    "visited": Wording("", (), ("Where did {x} go?", "Where did {x} go that day?"), ("To the {v}.",)),
    "will_go": Wording("", (), ("Where is {x} going?",), ("To {v}.",), ("Who is going to {v}?",), _WHO),
    "will_day": Wording("", (), ("When will {x} leave?", "On which day will {x} leave?"), ("On {v}.",)),
    "will_vehicle": Wording("", (), ("How will {x} travel?", "How is {x} going there?"), ("By {v}.",)),
}
