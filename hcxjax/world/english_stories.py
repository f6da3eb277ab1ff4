"""The English plots, step by step, as in `korean_stories`; the marks are those of `english_patterns`."""

LOST = (
    (
        "{a} lives in {a.home}. {a:he:cap} loved {a:his} {thing} very much.",
        "{a}, who lives in {a.home}, took {a:his} {thing} everywhere.",
        "{a} lives in {a.home}. {a:his:cap} grandmother had given {a:him} {thing:a}.",
        "In {a.home} lives a {a:man} named {a}. For {a:his} birthday {a:he} got {thing:a}.",
    ),
    (
        "But on {day} {a} lost the {thing}.",
        "On {day} morning {a} saw that {a:he} had lost the {thing}.",
        "One {day}, on the way home, {a} lost the {thing}.",
    ),
    ("", "That day {weather}.", "Outside, {weather}."),
    (
        "{a} searched every corner of the house, but the {thing} was not there.",
        "{a} looked for the {thing} all day long.",
        "{a} asked {a:his} friend {b} for help.",
        "{a} was so sad that {a:he} could not eat.",
    ),
    (
        "Luckily, {b} found the {thing} at the {spot}.",
        "In the evening {b} found the {thing} at the {spot}.",
        "It was {b} who found the {thing} at the {spot}.",
        "{b}, who lives next door, found the {thing} near the {spot}.",
    ),
    (
        "{a} was grateful and gave {b} {food:a}.",
        "With a big smile, {a} handed {b} {food:a}.",
        "{a} thanked {b} and shared some {food:s}.",
    ),
    ("", "From that day on, {a} and {b} were good friends.", "After that, {a} took better care of the {thing}."),
)

SHOPPING = (
    (
        "On {day} {a} went to the market in {place}.",
        "{a} stopped at the market in {place}.",
        "On {day} morning {a} went shopping in {place}.",
    ),
    ("", "That day {weather} and the market was full of people.", "The market was noisy from early morning."),
    (
        "One {food} cost {price} won.",
        "The shopkeeper said that one {food} was {price} won.",
        "The {food:s} looked fresh and cost {price} won each.",
    ),
    (
        "{a} bought {count} {food:s} and paid {paid} won.",
        "{a} bought {count} {food:s}. The price was {paid} won in all.",
        "For {count} {food:s} {a} paid {paid} won.",
    ),
    (
        "On the way home {a:he} met {b} and gave {b:him} {given}.",
        "{a} gave {given} of them to {b}.",
        "When {b} came to visit, {a} gave {b:him} {given}.",
    ),
    ("Now {a} has {left} {food:s} left.", "So {left} {food:s} were left.", "That left {a} with {left} {food:s}."),
    ("", "{b} thanked {a:him}.", "{a} put the rest in a basket."),
)

TRIP = (
    (
        "On {day} {a} went on a trip to {place}.",
        "{a} had wanted to see {place} for a long time. On {day} {a:he} went there.",
        "Last {day} {a} went to {place}.",
        "{a} heard from {b} about a town called {place} and went there.",
    ),
    ("{a:he:cap} went by {vehicle}.", "It was far, so {a:he} went by {vehicle}.", "By {vehicle} it took two hours."),
    ("", "That day in {place} {weather}.", "When {a:he} arrived, {weather}."),
    (
        "In {place} {a} visited the {spot} and ate {food:a}.",
        "{a} ate {food:a} in a shop next to the {spot}.",
        "{a} was hungry and ate {food:a} near the {spot}.",
    ),
    ("", "{a} walked slowly and took many pictures.", "All the people were kind."),
    (
        "{a} bought {thing:a} as a gift for {b}.",
        "{a:he:cap} thought of {b} and chose {thing:a} as a gift.",
        "As a gift for {b}, {a} bought {thing:a}.",
    ),
    (
        "{b} was very happy with the gift.",
        "{a} came home late at night.",
        "",
        "{b} said that they should go together next time.",
    ),
)

MEETING = (
    (
        "On {day} the {event} was held in {place}.",
        "The {event} was held in {place} on {day}.",
        "In {place}, {day} was the day of the {event}.",
    ),
    (
        "",
        "That day {weather}.",
        "Many people look forward to the {event} every year.",
        "People stood in line from early morning.",
    ),
    (
        "There {a} met {b}, an old friend.",
        "{a} met {b} by chance near the {spot}.",
        "{a} was walking around alone when {a:he} met {b}.",
    ),
    ("", "{b} smiled and waved.", "{a} and {b} were glad to see each other.", "{a} and {b} talked for a long time."),
    (
        "{a} was hungry and ate {food:a}.",
        "{a} ate {food:a} while {b} told a story.",
        "{a} ate {food:a} and {b} drank tea.",
    ),
    (
        "{a} and {b} agreed to come again next year.",
        "{b} promised to write {a} a letter.",
        "{a} came home only at night.",
        "",
    ),
)

FESTIVAL_OPENING = (
    "The {event} was held in {place}.",
    "On {day} the {event} was held in {place}.",
    "This year the {event} was held in {place}. That day {weather}.",
)
FESTIVAL_ENDING = (
    "{winner} won the prize.",
    "The prize went to {winner}.",
    "Everyone clapped when {winner} won the prize.",
    "In the end, {winner} won the prize.",
)

LETTER = (
    ("Dear {b}, how are you?", "Dear {b}, I miss you.", "Hello, {b}!", "Dear {b}, it has been a long time."),
    (
        "I am in {place} now.",
        "I came to {place}.",
        "I am writing from {place}.",
        "I have been in {place} for a few days.",
    ),
    ("", "This morning {weather}.", "When I came, {weather}."),
    (
        "At the {spot} I ate {food:a}.",
        "Yesterday I ate {food:a}.",
        "The people here gave me {food:a} to eat, and it was very good.",
    ),
    (
        "I bought {thing:a} as a gift for you.",
        "I chose {thing:a} for you.",
        "At the {spot} I got your gift. It is {thing:a}.",
    ),
    ("", "I also saw the {event}.", "Next time I want to come with you.", "Tell me your news, too."),
    ("See you on {day}.", "See you soon.", "Please write back.", "Take care."),
)
LETTER_SIGNATURE = ("Yours, {a}", "Your friend {a}", "From {a}")

DIARY = (
    ("Today {weather}.", "In the morning {weather}.", "I got up a little late."),
    (
        "After lunch I went to the {spot}.",
        "I was bored, so I went to the {spot}.",
        "I went to the {spot} for the first time in weeks.",
    ),
    ("There I met {b}.", "To my surprise, I met {b}.", "I met my friend {b} there."),
    (
        "",
        "{b} said that {b:he} had just come back from {place}.",
        "{b} told me about the {event}.",
        "We ate {food:s} together.",
    ),
    (
        "On the way back I bought {thing:a}.",
        "I saw a pretty {thing} in a shop and bought it.",
        "{b} told me to buy {thing:a}, and I did.",
    ),
    ("", "I put the {thing} on my desk and felt happy.", "{b} said that it suited me."),
    ("It was a very happy day.", "Tomorrow I want to go far away by {vehicle}.", "I should go to bed early.", ""),
)
DIARY_TITLE = ("{a}'s diary, {day}", "{day}, {a}'s diary")

DIALOGUE = (
    (
        ("a", "Hello, {b}. Where are you going?"),
        ("a", "{b}, where are you going this week?"),
        ("a", "That is a big bag, {b}. Are you going far?"),
    ),
    (
        ("b", "I am going to {place}."),
        ("b", "I am taking a trip to {place}."),
        ("b", "I am going to see {c} in {place}."),
    ),
    (("a", "When will you leave?"), ("a", "How nice. On which day will you go?"), ("a", "When do you start?")),
    (("b", "I will leave on {day}."), ("b", "On {day} morning."), ("b", "On {day}. I am looking forward to it.")),
    (("a", "How will you get there?"), ("a", "How are you going to travel?"), ("a", "And how do you get there?")),
    (("b", "I will go by {vehicle}."), ("b", "By {vehicle}."), ("b", "I am going to take the {vehicle}.")),
    (
        ("a", "Have a safe trip."),
        ("a", "They say {place} is beautiful. Enjoy it."),
        ("a", "The {food:s} there are very good. You should try them."),
    ),
    (("b", "Thank you, {a}."), ("b", "I will bring you {thing:a}."), ("b", "I will. See you soon.")),
)

PLOTS = {"lost": LOST, "shopping": SHOPPING, "trip": TRIP, "meeting": MEETING}
