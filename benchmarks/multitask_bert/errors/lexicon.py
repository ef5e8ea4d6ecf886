"""The word lists of the error analysis: short, general, and taken from no data set."""

from __future__ import annotations

from collections.abc import Mapping


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


NEGATIONS = _set(
    "no not never none nobody nothing nowhere neither nor cannot without hardly barely scarcely"
    " dont doesnt didnt isnt arent wasnt werent wont cant couldnt wouldnt shouldnt"
)
CONTRASTS = _set("but although though however yet despite while whereas instead")
CLAUSE_MARKERS = _set(
    "that which who whom whose because although though while whereas when where if since unless"
    " after before until whether"
)
# Words that say how a sentence is built, and little about what.
FUNCTION_WORDS = NEGATIONS | _set(
    "a an the this that these those some any each every all both half such other another same own"
    " i me my mine myself you your yours yourself he him his himself she her hers herself it its"
    " itself we us our ours ourselves they them their theirs themselves who whom whose which what"
    " one ones someone something anyone anything everyone everything"
    " am is are was were be been being do does did doing done have has had having"
    " will would shall should can could may might must ought"
    " and or but so if because although though while whereas than then as until unless since"
    " of in on at by to from with about into onto over under up down out off for through during"
    " between among against before after above below again further toward towards upon within"
    " when where why how there here also too very just only even still more most much many few"
    " less least now yet however really quite rather"
)
_NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
    " sixteen seventeen eighteen nineteen twenty"
)
_TENS = "ten twenty thirty forty fifty sixty seventy eighty ninety"
NUMBERS: Mapping[str, str] = {
    **{word: str(value) for value, word in enumerate(_NUMBERS.split())},
    **{word: f"{value}0" for value, word in enumerate(_TENS.split(), start=1)},
}
POSITIVE = _set(
    "admirable amazing amusing astonishing authentic beautiful beautifully best brilliant"
    " captivating celebration charm charming clever compelling dazzling delight delightful"
    " elegant enchanting engaging enjoy enjoyable entertaining excellent exceptional exciting"
    " exhilarating extraordinary fascinating fine finest fresh fun funny gem gifted good gorgeous"
    " graceful great gripping heartfelt hilarious honest imaginative impressive inspiring inventive"
    " joy joyous kind lively love loved lovely magic magnificent marvelous masterful masterpiece"
    " memorable moving original outstanding perfect perfectly pleasant pleasure poignant powerful"
    " refreshing remarkable rewarding rich rousing satisfying sensitive smart solid"
    " spectacular splendid strong stunning sublime superb superior sweet tender terrific"
    " thoughtful thrilling touching treasure triumph unforgettable vivid warm wise witty wonderful"
    " worthy"
)
NEGATIVE = _set(
    "absurd annoying arrogant artificial awful awkward bad badly banal bland bore bored boring"
    " bloated botched cheap chaotic cliche cliched clumsy clunky cold confused confusing contrived"
    " crude dated dead depressing derivative disappointing disappointment disaster dismal dreadful"
    " dreary dull dumb empty exhausting fail failed fails failure fake feeble flat flawed flimsy"
    " foolish forced forgettable formulaic frustrating generic grating hollow horrible idiotic"
    " inane incoherent indulgent inept insipid lack lacking lacks lame lazy lifeless lousy mediocre"
    " mess messy mindless miserable muddled nasty obnoxious offensive overblown overlong painful"
    " pathetic plodding pointless poor poorly predictable pretentious ridiculous sad shallow silly"
    " simplistic slow sloppy sluggish stale stiff stupid tedious terrible thin tired tiresome trite"
    " ugly unbearable uneven unfunny uninspired unpleasant vapid wasted weak worse worst"
)
IDIOMS = (
    "a breath of fresh air",
    "a cut above",
    "a far cry",
    "a grain of salt",
    "a waste of time",
    "against the grain",
    "all over the place",
    "as good as it gets",
    "at the end of the day",
    "behind the times",
    "by the book",
    "by the numbers",
    "can't wait",
    "comes up short",
    "could do worse",
    "down to earth",
    "fall flat",
    "falls flat",
    "falls short",
    "goes a long way",
    "goes nowhere",
    "going through the motions",
    "hit and miss",
    "hit or miss",
    "hits the mark",
    "in over its head",
    "jumps the shark",
    "leaves much to be desired",
    "leaves something to be desired",
    "like watching paint dry",
    "more than meets the eye",
    "no stone unturned",
    "not half bad",
    "nothing to write home about",
    "off the mark",
    "off the wall",
    "on the edge of your seat",
    "out of steam",
    "out of the box",
    "over the top",
    "paint by numbers",
    "piece of cake",
    "pulls no punches",
    "put to sleep",
    "rings hollow",
    "rings true",
    "run of the mill",
    "running on empty",
    "runs out of gas",
    "sit through",
    "steals the show",
    "the last straw",
    "the real deal",
    "to die for",
    "tongue in cheek",
    "too much of a good thing",
    "under the radar",
    "under your skin",
    "wears thin",
    "worth the price of admission",
)
