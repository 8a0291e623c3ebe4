"""Speech whose phonemes are known, for training: many utterances of many espeak-ng voices as mel columns with a class each.

``python -m lipdub.train.synthetic_speech OUT.npz --minutes 60 --seed 0``; `generate` says what the file holds. What is said is
random words of several languages and random syllables where spelling tells the sound: nobody's text, and no natural
sentence that a measure may want to use as unseen. Voices in ``HELD_OUT_VARIANTS`` and the words that `_is_held_out` picks
occur only in utterances that are flagged as held out.
"""

from __future__ import annotations

import argparse
import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.signal import resample_poly

from lipdub.atomic import whole_file
from lipdub.errors import LipdubError, OutputRefused, PhonemesError
from lipdub.phonetics import classes, espeak
from lipdub.records import MelSpec
from lipdub.speech.mel import log_mel

FORMAT = 1
TRAIN, UNSEEN_WORDS, UNSEEN_VOICE = 0, 1, 2
"""Values of ``held_out``. An unseen voice says unseen words."""
HELD_OUT_SHARE: Final = 0.12
"""Share of the utterances, and of the words, that are held out."""
HELD_OUT_VARIANTS: Final = ("f2", "m3", "klatt2", "Andy")
VARIANTS: Final = (
    "", "m1", "m2", "m4", "m5", "m6", "m7", "m8", "f1", "f3", "f4", "f5", "klatt", "klatt3", "klatt4", "klatt6", "Alex", "Annie",
    "adam", "Denis", "Diogo", "Gene", "Jacky", "Lee", "Mario", "Michael", "Mike", "Storm", "aunty", "belinda", "caleb",
    "david", "ed", "edward", "gustave", "iven", "john", "kaukovalta", "linda", "max", "miguel", "norbert", "pablo", "paul", "pedro",
    "quincy", "rob", "robert", "sandro", "shelby", "steph", "travis", "victor", "zac", "Alicia", "Andrea", "anika",
)  # fmt: skip
PAUSE_S: Final = (0.1, 0.5)
"""Shortest and longest silence before and after an utterance, seconds."""

WORDS: Final = {
    "en-us": """a about above after again all always among and animal apple arm away baby back bag ball bank basic beach bean bear
        beautiful because bed before begin behind bell below between bicycle big bird black blood blue boat body book both bottle
        bottom box boy bread breakfast bridge broom brother brown bubble build bumper burn busy but butter cabbage camp car carpet
        chair champion cheap cheese chicken child church city climb close cloud coat coffee cold company computer cup damp deep door
        double dream drop eight empty enough evening every example eye family farm fast father fever few film finger fish five flame
        flower food foot for forget four fox free friday friend from fruit full funny garden give globe go good grape green group
        guava half hammer hand happy have heavy help hope house human improve job jump keep kitchen knife label lamp large laugh leaf
        lemon letter life lip love machine make map maybe member memory middle milk moment money month moon more morning mother
        mountain mouse mouth move movie much museum music my name number often open orange over paper park part people pepper perfect
        phone piano picture piece pipe place plant plenty plum pocket possible potato power probably problem public pump purple push
        quick rabbit rain rapid remember ribbon river room rubber sample sheep shoe shop simple sleep slow small smooth soap some soup
        spoon spring stamp stop story summer supper surf swim table temper temple ten thank them think this though thumb time tomorrow
        top trouble tube umbrella up vampire very village violin visit voice volume wait warm wash watch water web week welcome we
        what when where white who why window winter with woman wonderful wood word work world yellow yes you young zebra zoo""",
    "de": """abend aber alle apfel arbeit auf auge baum bauch bei berg besen bett bild bitte blatt blau bleiben blume boden brief brot
        brücke bruder buch bunt dampf daumen der die das dorf dumm ein eimer euch fabrik fahren familie farbe fenster fest feuer
        film finger fisch flamme flug frau freude fuß ganz garten geben gemüse glas gold grün gruppe gummi haus hemd herbst himmel hof
        hoffnung holz hund hummel immer insel jahr jemand jung kamm kampf kirche klein kopf korb kuchen kupfer lampe land leben
        lieb löffel luft mai mann markt maus meer mehr messer milch mit mittag mond morgen müde mutter nebel neu nicht nummer ober
        oft papier park pfad pfanne pflaume pinsel platz post prüfen puppe rabe raum regen rufen sahne saft samt schaf schiff schön
        schuh schwamm see sieben silber sommer sonne spiel stadt stimme stumm suppe tag tempel tief tor traum treppe über uhr und
        unten vater verbot viel vogel vom voll wald warm wasser weg weiß welle wind wir woche wolf wunderbar zaun zimmer zum zwölf""",
    "es": """abajo abeja abril abuelo agua ahora amigo amor antes aprender árbol azul bajo banco barco barrio bebé bien blanco boca
        bolsa bomba bonito bosque brazo bueno buscar caballo cabeza cada café calle cama campo casa cambio cielo cinco ciudad cobre
        comer como compra con cuerpo dedo después día diciembre doble donde dulce empezar enfermo entre escuela espejo familia febrero
        feliz fiesta flor forma frío fruta fuego grande gente guapo hablar hambre hermano hijo hombre hoy huevo invierno isla joven
        jugar lámpara leche lejos libro limón limpio llave lluvia luna luz madre mamá mañana mapa mariposa mesa mi miel mover mucho
        mujer mundo música nada nombre noche nube nuevo número obra ojo padre palabra pan papel para parque pasar pelo pequeño pero
        perro piedra plata playa plaza poco primo problema pueblo puerta rápido rey río ropa rubio saber semana siempre simple sobre
        sol sombrero subir suelo tambor tarde templo tiempo todo trabajo también uva vaca vamos vender verde viento vivir zapato""",
    "fr": """abeille ami amour animal apprendre arbre après au aujourd'hui avec avril bague balle bateau beau beaucoup bébé belle bien
        blanc bleu boire bois bon bouche boulanger bout bras brun bureau café campagne carte champ chambre chapeau chat chemin cheval
        ciel cinq combien comme compter corps cuisine danser dehors depuis deux devant dimanche donner doux école effort enfant ensemble
        épaule été facile faim famille femme fenêtre feu fille film fleur forêt fort fromage fruit gâteau grand gros habiter herbe heureux
        hiver homme image jambe jardin jaune jeune jouer jour jupe lampe lapin lettre libre lit livre lumière lune main maison maman
        manger marché matin membre mer merci minute mois monde montagne mot mouche musique neige neuf nom nombre nous nuage nuit ombre
        ouvrir pain papa papier par parapluie parc parler petit peu pièce pied place plage pluie plume poche poisson pomme pont porte
        possible pour premier printemps problème propre public quand quatre question rêve robe rouge rue sable savoir semaine simple
        soleil soupe sous table tambour temps terre tête timbre tomber tous travail trop trouver vache vent vert viande ville vivre voix""",
    "it": """abito acqua albero alba ama amico anche andare aprile arancia bambino banca barba basso battere bello bene bianco bocca bosco
        braccio bravo breve buono cabina caldo cambio camera campo cane cappello casa cielo cinema cinque città colpa compagno
        comprare con coppa corpo cosa cucina dopo donna dove due effetto erba esempio estate fabbrica fame famiglia febbre felice
        festa figlio film fiore fiume foglia forma forse freddo fuoco gamba gatto gelato gente giorno giovane gomma grande gruppo
        gusto impossibile isola labbro lago lampo latte lavoro legno lento libro limone luce luna lupo madre mano mappa mare mattina
        membro mese mezzo mille mondo monte morbido mosca muovere museo musica nebbia neve nome nove numero nuovo oggi ombra ora pace
        padre palla pane papà parlare parola pasta pepe perché piazza piccolo piede pioggia ponte porta posto potere prima problema
        pubblico punto quando quattro rapido rosa rubare sabbia sapere sapone scarpa sempre sera settembre simbolo sole sopra sotto
        spiaggia stampa tavolo tempo terra topo tromba tutto uomo uva vecchio vento verde viaggio vino vivere voce zampa zebra""",
    "pt-br": """abacaxi abelha abril agora água ainda alegre amigo amor ano aprender árvore azul baixo banco barco bebê beijo bem boca
        bola bom bonito branco braço brincar cabeça cabelo cada café cama campo cantar casa céu chuva cidade cinema com combinar como
        comprar copo corpo depois devagar dia dizer doce embora empresa escola espelho família favor febre feliz festa filho fogo forma
        fruta gato gente gostar grande homem hoje igreja inverno irmão janela jovem lâmpada leite limão limpo livro longe lua luz
        maçã mãe mais manhã mapa mar mesa mil minha moeda montanha mover mulher mundo música nada nome novembro nuvem obrigado olho
        ontem ovo pai palavra pão papel parque passar pedra peixe pequeno perto pessoa piano plano ponte porta possível pouco praia
        primo problema quando rápido rio roupa rua saber sábado sapato semana sempre simples sobre sol sombra sopa tambor tarde
        tempo terra também tudo um uva vaca velho vento verde vida viver você voltar zebra""",
    "nl": """aap aarde altijd appel arm avond bal bank bed begin bij bijna blad blauw blij bloem boek boom boot bord bos boven brief broer
        brood brug buiten buurman computer dag dak damp deur diep dier dochter dorp droom druppel duim eiland emmer familie feest fiets
        film fles gebouw geel gesprek gezond goed gras groen groep half hamer hand hemd herfst hoofd huis ijs jong kamer kaars kamp
        keuken kind klomp koffie kop koud lamp lang lepel leven licht lief lucht maan maand man markt meer meisje melk mes midden moeder
        moment mond mooi morgen muis muziek naam nacht neus nieuw nummer olifant onder ook oom op oud paard papier park pen peper plaats
        plank plant poes pomp pop probleem raam regen rivier rood rubber rups samen schaap schip schoen slapen soep spel speld stem stil
        stoel stop straat suiker tafel tempel tijd tomaat trap trein tuin uur vader vallen vandaag veel ver vinger vis vlag vogel vol
        vriend vrouw vuur wagen warm water weg wereld werk wind winter wolk woord zee ziek zilver zomer zon zwemmen""",
    "pl": """ale babcia bank bardzo biały biblioteka bliski błękit brama brat brzeg być chleb chłopiec ciepły cukier czas czerwony człowiek
        dom dobry dobrze drzewo duży dzień dziewczyna film fabryka garnek głowa góra grupa herbata jabłko jeden jutro kawa kamień
        kapelusz komputer kobieta kolor koń książka kubek kwiat lampa las lato lipa list łabędź mama mapa masło mleko miasto miejsce
        mieszkać miłość młody mocny morze most mowa mucha muzyka myć niebo noc nowy obiad obok obraz okno ojciec osoba owoc palec
        pamięć pan papier park pies pierwszy piękny pisać plac pogoda pokój pole pomoc ponad potem praca prawda problem przyjaciel
        ptak pusty robić roślina ryba rynek rzeka samochód siostra skrzypce słowo słońce spokój stary stół szkoła szybko śnieg tempo
        tramwaj trawa ubranie ulica umieć usta wakacje wiatr widok wieczór wiosna woda wolny wszystko zabawa zamek zawsze ziemia zima""",
}  # fmt: skip
"""espeak's language to everyday words of it."""
SYLLABIC: Final = ("es", "it", "eo", "fi", "de", "pl", "id", "sw", "tr", "hr")
"""Languages in which random syllables are read as they are spelt."""
_CONSONANTS: Final = ("b", "p", "m", "f", "v", "t", "d", "n", "l", "s", "r", "k", "g", "b", "p", "m", "br", "pl", "tr", "")
_VOWELS: Final = ("a", "e", "i", "o", "u")
_CODAS: Final = ("", "", "", "n", "m", "l", "s", "r", "p", "b", "t")


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one utterance is made."""

    text: str
    language: str
    variant: str
    held_out: int
    words_per_minute: int
    pitch: int
    pitch_range: int
    gain: float
    before_s: float
    after_s: float

    @property
    def voice(self) -> str:
        """espeak's name of the voice."""
        return f"{self.language}+{self.variant}" if self.variant else self.language


def draw_recipe(random: np.random.Generator) -> Recipe:
    """A random utterance of 4 to 14 words."""
    held_out = int(random.choice((TRAIN, UNSEEN_WORDS, UNSEEN_VOICE), p=(1 - HELD_OUT_SHARE, HELD_OUT_SHARE / 2, HELD_OUT_SHARE / 2)))
    unseen = held_out != TRAIN
    if random.random() < 0.65:
        language = str(random.choice(list(WORDS)))
        words = _words(language, unseen)
        chosen = [words[random.integers(len(words))] for _ in range(random.integers(4, 15))]
    else:
        language = str(random.choice(SYLLABIC))
        chosen = [_syllables(random, unseen) for _ in range(random.integers(4, 12))]
    variant = str(random.choice(HELD_OUT_VARIANTS if held_out == UNSEEN_VOICE else VARIANTS))
    return Recipe(
        text=_punctuated(chosen, random), language=language, variant=variant, held_out=held_out,
        words_per_minute=int(random.integers(120, 221)), pitch=int(random.integers(20, 81)), pitch_range=int(random.integers(20, 81)),
        gain=float(10 ** random.uniform(-0.9, 0.0)), before_s=float(random.uniform(*PAUSE_S)), after_s=float(random.uniform(*PAUSE_S)),
    )  # fmt: skip


@cache
def _words(language: str, unseen: bool) -> tuple[str, ...]:
    """The words of a language that are held out, or the others."""
    return tuple(word for word in WORDS[language].split() if _is_held_out(word) == unseen)


def _is_held_out(word: str) -> bool:
    """A fixed share of all words, whatever the seed."""
    return zlib.crc32(word.encode()) % 1000 < 1000 * HELD_OUT_SHARE


def _syllables(random: np.random.Generator, unseen: bool) -> str:
    """A word of one to three random syllables, out of those that are held out or of the others."""
    while True:
        parts = ["".join(part[random.integers(len(part))] for part in (_CONSONANTS, _VOWELS, _CODAS)) for _ in range(random.integers(1, 4))]
        if _is_held_out("".join(parts)) == unseen:
            return "".join(parts)


def _punctuated(words: Sequence[str], random: np.random.Generator) -> str:
    """A sentence: a comma after about every sixth word, an end that asks or tells."""
    text = " ".join(word + ("," if random.random() < 0.15 else "") for word in words[:-1])
    return f"{text} {words[-1]}{random.choice(('.', '.', '?', '!'))}".strip()


@dataclass(frozen=True, slots=True, repr=False)
class Utterance:
    """A spoken sentence of T mel columns."""

    recipe: Recipe
    mel: NDArray[np.float16]
    """float16 (T, bands)"""
    samples: NDArray[np.int16]
    """(T hop,), 16 kHz mono."""
    kind: NDArray[np.uint8]
    """(T,), class of each column: index into ``classes.CLASSES``."""
    symbol: list[str]
    """IPA of each column."""


def make_utterance(recipe: Recipe, spec: MelSpec) -> Utterance:
    """Speak a recipe. Column j is centred on ``j / columns_per_s`` seconds, and labelled with what sounds at that moment.

    Raises PhonemesError where espeak-ng, the voice or one of its phonemes is not known.
    """
    speech = espeak.speak(
        recipe.text, recipe.voice, words_per_minute=recipe.words_per_minute, pitch=recipe.pitch, pitch_range=recipe.pitch_range
    )
    spoken = resample_poly(speech.samples, spec.sample_rate_hz, speech.sample_rate_hz).astype(np.float32)
    loudest = max(float(np.abs(spoken).max(initial=0.0)), 1e-4)
    before, after = (np.zeros(round(pause_s * spec.sample_rate_hz), np.float32) for pause_s in (recipe.before_s, recipe.after_s))
    samples = np.concatenate([before, spoken * np.float32(recipe.gain * 0.98 / loudest), after])
    mel = log_mel(samples, spec)
    whole = np.pad(samples, (0, mel.shape[1] * spec.hop - len(samples)))
    times_s = np.arange(mel.shape[1]) / spec.columns_per_s - len(before) / spec.sample_rate_hz
    index = speech.alignment.index_at(times_s)
    return Utterance(
        recipe,
        np.ascontiguousarray(mel.T, np.float16),
        np.rint(whole * 32767).astype(np.int16),
        speech.alignment.classes_at(times_s).astype(np.uint8),
        ["" if number < 0 else speech.alignment.phonemes[number].symbol for number in index],
    )


def generate(
    out: Path, *, minutes: float, seed: int = 0, force: bool = False, on_progress: Callable[[float, float], None] | None = None
) -> int:
    """Write about `minutes` of labelled speech to `out` (.npz); the number of utterances. The same seed says the same.

    The file holds, for N utterances whose C mel columns stand one after the other:
    ``mel`` float16 (C, 80) in [-4, 4]; ``samples`` int16 (C hop,), 16 kHz mono; ``kind`` uint8 (C,), index into ``classes``; ``symbol``
    uint16 (C,), index into ``symbols`` (IPA; 0 is silence); ``first`` int64 (N + 1,), where each utterance begins, and the end;
    ``held_out`` uint8 (N,): 0 train, 1 unseen words, 2 unseen voice and words; ``voice`` uint16 (N,), index into ``voices``; ``text`` (N,);
    ``classes``, ``symbols``, ``voices``; ``columns_per_s``; ``format``. Nothing in it needs pickle.

    on_progress: told (minutes done, minutes in all). Raises PhonemesError without espeak-ng, OutputRefused.
    """
    if not (0 < minutes < float("inf")):
        raise ValueError(f"minutes must be positive, got {minutes}")
    if out.suffix != ".npz":
        raise OutputRefused(f"cannot write '{out}': give a name that ends in .npz")
    if out.exists() and not force:
        raise OutputRefused(f"'{out}' exists; give another name, or --force to replace it")
    spec = MelSpec()
    random = np.random.default_rng(seed)
    wanted = minutes * 60 * spec.columns_per_s
    made: list[Utterance] = []
    columns = failed = 0
    while columns < wanted:
        try:
            utterance = make_utterance(draw_recipe(random), spec)
        except PhonemesError:
            # A voice that this espeak-ng lacks; without espeak-ng at all, every one fails.
            failed += 1
            if failed > 20 + len(made):
                raise
            continue
        made.append(utterance)
        columns += len(utterance.mel)
        if on_progress is not None and len(made) % 50 == 0:
            on_progress(columns / spec.columns_per_s / 60, minutes)
    _save(made, spec, out)
    return len(made)


def _save(made: Sequence[Utterance], spec: MelSpec, out: Path) -> None:
    symbols = ["", *sorted({symbol for utterance in made for symbol in utterance.symbol} - {""})]
    number_of = {symbol: number for number, symbol in enumerate(symbols)}
    voices = sorted({utterance.recipe.voice for utterance in made})
    with whole_file(out) as part:
        np.savez(
            part,
            mel=np.concatenate([utterance.mel for utterance in made]),
            samples=np.concatenate([utterance.samples for utterance in made]),
            kind=np.concatenate([utterance.kind for utterance in made]),
            symbol=np.array([number_of[symbol] for utterance in made for symbol in utterance.symbol], np.uint16),
            first=np.cumsum([0, *(len(utterance.mel) for utterance in made)]).astype(np.int64),
            held_out=np.array([utterance.recipe.held_out for utterance in made], np.uint8),
            voice=np.array([voices.index(utterance.recipe.voice) for utterance in made], np.uint16),
            text=np.array([utterance.recipe.text for utterance in made]),
            classes=np.array(classes.CLASSES),
            symbols=np.array(symbols),
            voices=np.array(voices),
            columns_per_s=np.array(spec.columns_per_s),
            format=np.array(FORMAT),
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0, or 1 with one line on standard error."""
    parser = argparse.ArgumentParser(prog="python -m lipdub.train.synthetic_speech", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help=".npz to write")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--force", action="store_true", help="replace the file if it exists")
    options = parser.parse_args(arguments)
    try:
        count = generate(options.out, minutes=options.minutes, seed=options.seed, force=options.force)
    except (LipdubError, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write(f"wrote {options.out}: {count} utterances\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
