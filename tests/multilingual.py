"""Lines in many languages and scripts, the same on every machine, to test tokenizers with and to train small ones.

`lines` mixes three sentences of each language (the total of a receipt, a train, the weather) with what tokenizers get
wrong: runs of digits, contractions, white space of all kinds, joined emoji, combining marks, code, tables and random
Unicode.
The sentences were written for this file.
"""

import random
from collections.abc import Callable

SENTENCES = {
    "English": ("The receipt says the total is {price}.", "Train {n} leaves at {time}.", "It'll rain on {date}."),
    "German": ("Der Kassenbon nennt {price} als Summe.", "Der Zug {n} fährt um {time} ab.", "Am {date} fällt Schnee."),
    "French": ("Le ticket indique un total de {price}.", "Le train {n} part à {time}.", "Il pleuvra le {date}."),
    "Spanish": ("¿El recibo suma {price}?", "El tren {n} sale a las {time}.", "El {date} lloverá mañana y tarde."),
    "Italian": ("Lo scontrino è di {price}.", "Il treno {n} parte alle {time}.", "Il {date} ci sarà il sole."),
    "Portuguese": ("O recibo soma {price}.", "O comboio {n} parte às {time}.", "No dia {date} não vai chover."),
    "Dutch": ("Op de bon staat {price}.", "Trein {n} vertrekt om {time}.", "Op {date} waait het hard."),
    "Swedish": ("Kvittot visar {price}.", "Tåg {n} avgår klockan {time}.", "Den {date} blir det snö på fjället."),
    "Norwegian": ("Kvitteringen viser {price}.", "Tog {n} går klokka {time}.", "Den {date} blåser det på øya."),
    "Finnish": ("Kuitin summa on {price}.", "Juna {n} lähtee kello {time}.", "Päivänä {date} sataa räntää."),
    "Icelandic": ("Á kvittuninni stendur {price}.", "Lest {n} fer klukkan {time}.", "Þann {date} verður þoka."),
    "Polish": ("Na paragonie jest {price}.", "Pociąg {n} odjeżdża o {time}.", "Dnia {date} będzie mżawka."),
    "Czech": ("Na účtence je {price}.", "Vlak {n} odjíždí v {time}.", "Dne {date} bude pršet a foukat vítr."),
    "Hungarian": ("A nyugtán {price} áll.", "A(z) {n} vonat {time}-kor indul.", "Ekkor: {date}, hűvös idő lesz."),
    "Romanian": ("Bonul arată {price}.", "Trenul {n} pleacă la {time}.", "Pe {date} va ninge în munți."),
    "Croatian": ("Na računu piše {price}.", "Vlak {n} kreće u {time}.", "Dana {date} bit će sunčano i toplije."),
    "Lithuanian": ("Kvite parašyta {price}.", "Traukinys {n} išvyksta {time}.", "{date} bus šilta ir ūkanota."),
    "Estonian": ("Tšekil on {price}.", "Rong {n} väljub kell {time}.", "Päeval {date} on külm öö."),
    "Turkish": ("Fişte {price} yazıyor.", "{n} numaralı tren {time} saatinde kalkıyor.", "{date} günü yağmur yağışlı."),
    "Vietnamese": ("Hóa đơn ghi {price}.", "Tàu {n} khởi hành lúc {time}.", "Ngày {date} trời sẽ mưa rất to."),
    "Indonesian": ("Struk itu berjumlah {price}.", "Kereta {n} berangkat pukul {time}.", "Tanggal {date} cuaca cerah."),
    "Swahili": ("Risiti inaonyesha {price}.", "Treni {n} inaondoka saa {time}.", "Tarehe {date} kutakuwa na mvua."),
    "Yoruba": ("Owó ọjà jẹ́ {price}.", "Ọkọ̀ ojú irin {n} máa lọ ní {time}.", "Òjò máa rọ̀ ní {date}."),
    "Russian": ("В чеке указано {price}.", "Поезд {n} отходит в {time}.", "{date} ожидается дождь со снегом."),
    "Ukrainian": ("У чеку вказано {price}.", "Потяг {n} їде о {time}.", "{date} буде сонячно, але прохолодно."),
    "Bulgarian": ("На бележката пише {price}.", "Влак {n} тръгва в {time}.", "На {date} ще има мъгла."),
    "Kazakh": ("Чекте {price} деп жазылған.", "{n} пойыз {time} кетеді.", "{date} күні қар жауады."),
    "Greek": ("Η απόδειξη γράφει {price}.", "Το τρένο {n} φεύγει στις {time}.", "Στις {date} θα έχει ήλιο."),
    "Armenian": ("Կտրոնի գումարը {price} է։", "Գնացք {n}-ը մեկնում է {time}-ին։", "{date} անձրև է գալու։"),
    "Georgian": ("ქვითარზე წერია {price}.", "მატარებელი {n} გადის {time}-ზე.", "{date} იწვიმებს."),
    "Hebrew": ("בקבלה כתוב {price}.", "רכבת {n} יוצאת בשעה {time}.", "בתאריך {date} יֵרֵד גֶּשֶׁם."),
    "Arabic": ("مجموع الفاتورة {price}.", "يغادر القطار {n} الساعة {time}.", "سيكون الطقس مُشمِساً يوم {date}؟"),
    "Persian": ("جمع رسید {price} است.", "قطار {n} ساعت {time} می‌رود.", "روز {date} هوا سرد می‌شود."),
    "Urdu": ("رسید پر {price} لکھا ہے۔", "ٹرین {n} {time} بجے چلتی ہے۔", "{date} کو بارش ہوگی۔"),
    "Hindi": ("रसीद में कुल {price} है।", "ट्रेन {n} {time} बजे चलेगी।", "{date} को बारिश होगी।"),
    "Bengali": ("রসিদে মোট {price} আছে।", "ট্রেন {n} ছাড়বে {time} টায়।", "{date} তারিখে বৃষ্টি হবে।"),
    "Tamil": ("ரசீதில் மொத்தம் {price}.", "ரயில் {n} {time} மணிக்கு புறப்படும்.", "{date} அன்று மழை பெய்யும்."),
    "Telugu": ("రసీదులో మొత్తం {price}.", "రైలు {n} {time} గంటలకు బయలుదేరుతుంది.", "{date} న వర్షం పడుతుంది."),
    "Kannada": ("ರಸೀದಿಯಲ್ಲಿ ಒಟ್ಟು {price}.", "ರೈಲು {n} {time} ಕ್ಕೆ ಹೊರಡುತ್ತದೆ.", "{date} ರಂದು ಮಳೆ ಬರುತ್ತದೆ."),
    "Malayalam": ("രസീതിൽ ആകെ {price}.", "ട്രെയിൻ {n} {time} ന് പുറപ്പെടും.", "{date} ന് മഴ പെയ്യും."),
    "Gujarati": ("રસીદમાં કુલ {price} છે.", "ટ્રેન {n} {time} વાગ્યે ઉપડે છે.", "{date} ના રોજ વરસાદ પડશે."),
    "Punjabi": ("ਰਸੀਦ ਵਿੱਚ ਕੁੱਲ {price} ਹੈ।", "ਰੇਲ {n} {time} ਵਜੇ ਚੱਲਦੀ ਹੈ।", "{date} ਨੂੰ ਮੀਂਹ ਪਵੇਗਾ।"),
    "Sinhala": ("රිසිට්පතේ එකතුව {price}.", "දුම්රිය {n} {time} ට පිටත් වේ.", "{date} දින වැසි වැටේ."),
    "Thai": ("ใบเสร็จรวม {price} บาท", "รถไฟขบวน {n} ออกเวลา {time} น.", "วันที่ {date} ฝนจะตกหนัก"),
    "Lao": ("ໃບບິນລວມ {price}", "ລົດໄຟ {n} ອອກເວລາ {time}", "ວັນທີ {date} ຝົນຈະຕົກ"),
    "Khmer": ("វិក្កយបត្រសរុប {price}", "រថភ្លើង {n} ចេញម៉ោង {time}", "ថ្ងៃ {date} នឹងមានភ្លៀង"),
    "Burmese": ("ပြေစာတွင် စုစုပေါင်း {price}", "ရထား {n} သည် {time} တွင် ထွက်သည်။", "{date} တွင် မိုးရွာမည်။"),
    "Tibetan": ("འཛིན་ཤོག་ཁྲོན་བསྡོམས་ {price} རེད།", "མེ་འཁོར་ {n} ཆུ་ཚོད་ {time} ལ་འགྲོ།", "{date} ཉིན་ཆར་པ་འབབ།"),
    "Amharic": ("ደረሰኙ {price} ይላል።", "ባቡር {n} በ{time} ይነሳል።", "በ{date} ዝናብ ይዘንባል።"),
    "Mongolian": ("Тасалбарт {price} гэж бичсэн.", "Галт тэрэг {n} {time} цагт хөдөлнө.", "{date} өдөр цас орно."),
    "Chinese": ("收据上的总额是{price}。", "{n}次列车{time}发车，请提前检票。", "{date}有小雨，记得带伞！"),
    "Chinese (traditional)": ("收據總額為{price}。", "{n}次列車{time}開車。", "{date}颱風來襲，請勿外出。"),
    "Japanese": (
        "レシートの合計は{price}です。",
        "{n}号は{time}に発車します。",
        "{date}は雨が降るでしょう。カサをどうぞ",
    ),
    "Korean": ("영수증 합계는 {price}입니다.", "{n}호 열차는 {time}에 출발합니다.", "{date}에는 비가 오겠습니다."),
}

DIGITS = ("0123456789", "٠١٢٣٤٥٦٧٨٩", "०१२३४५६७८९", "０１２３４５６７８９", "Ⅳ½²③", "𝟘𝟙𝟚𝟛")
SPACES = (
    " ",
    "  ",
    "\t",
    "\n",
    "\r\n",
    "\r",
    "\n\n\n",
    "\u00a0",
    "\u2003",
    "\u3000",
    "\u200b",
    "\u2028",
    "\x0b",
    "\x85",
)
EMOJI = ("🙂", "👩‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🇧🇪", "🇯🇵", "❤️", "1️⃣", "🧑🏿‍🚒", "☕", "🏴󠁧󠁢󠁳󠁣󠁴󠁿")
MARKS = ("\u0301", "\u0308", "\u0323", "\u0327", "\u20dd", "\u05b4", "\u064b", "\u093c", "\ufe0f", "\u200d")
CONTRACTIONS = (
    "I'm",
    "you'LL",
    "she's",
    "IT'S",
    "we've",
    "they'Re",
    "he'd",
    "don't",
    "'tis",
    "rock’n’roll",
    "o'clock'll",
)
PUNCTUATION = (
    "...",
    "?!",
    "!!",
    "—",
    "“",
    "”",
    "«»",
    "、",
    "。",
    "...\n",
    "(((",
    "](",
    "$$$",
    "//",
    "\\",
    "~~",
    "#",
    "'",
    '"',
)
CODE = (
    "def area(w, h):\n\treturn w * h  # square pixels\n",
    "for (int i = 0; i < n; ++i) {\r\n    sum += x[i]*y[i];\r\n}",
    '{"total": 12.50, "items": ["tea", null], "ok": true}',
    "SELECT name, price FROM goods WHERE price >= 9.99;",
    '<table><tr><td colspan="2">Sum</td></tr></table>',
    "https://example.org/a_b?c=%20d&e=1#top",
    "E = mc^2, \\frac{a}{b} \\le \\sqrt{x_1}",
)


def _fill(rng: random.Random, sentence: str) -> str:
    amount = f"{rng.randrange(10000)}{rng.choice('.,')}{rng.randrange(100):02}"
    return sentence.format(
        n=rng.randrange(1, 20000),
        price=rng.choice(("{} €", "${}", "£{}", "¥{}", "₹{}", "{} kr", "{}")).format(amount),
        time=f"{rng.randrange(24)}:{rng.randrange(60):02}",
        date=rng.choice("./-").join(map(str, (rng.randrange(1, 29), rng.randrange(1, 13), rng.randrange(1990, 2040)))),
    )


def _sentence(rng: random.Random) -> str:
    return _fill(rng, rng.choice(SENTENCES[rng.choice(list(SENTENCES))]))


def _shouted(rng: random.Random) -> str:
    sentence = _sentence(rng)
    return rng.choice((sentence.upper(), sentence.title(), sentence.swapcase(), sentence.replace(" ", "")))


def _spaced(rng: random.Random) -> str:
    words = _sentence(rng).split(" ")
    return "".join(word + rng.choice(SPACES) * rng.randrange(1, 4) for word in words) + rng.choice(("", " ", "   "))


def _digits(rng: random.Random) -> str:
    runs = ("".join(rng.choice(rng.choice(DIGITS)) for _ in range(rng.randrange(1, 12))) for _ in range(6))
    return rng.choice((" ", "", ",", "-", " x")).join(runs)


def _mixed(rng: random.Random) -> str:
    parts = (CONTRACTIONS, PUNCTUATION, EMOJI, SPACES, _sentence(rng).split(" "))
    return "".join(rng.choice(rng.choice(parts)) + rng.choice(("", " ")) for _ in range(rng.randrange(2, 14)))


def _marked(rng: random.Random) -> str:
    return "".join(letter + rng.choice(MARKS) * rng.randrange(3) for letter in _sentence(rng))


def _code(rng: random.Random) -> str:
    return "".join(code[rng.randrange(len(code) // 2) :] for code in rng.sample(CODE, 2))


def _table(rng: random.Random) -> str:
    rows = [[_fill(rng, cell) for cell in ("{n}", "{price}", "{date}", "{time}")] for _ in range(rng.randrange(1, 4))]
    return rng.choice(("\n", "\r\n")).join(rng.choice((" | ", "\t", ";")).join(row) for row in rows)


def _random_unicode(rng: random.Random) -> str:
    planes = ((0x00, 0x100), (0x00, 0x800), (0x800, 0xD800), (0xE000, 0x10000), (0x10000, 0x20000), (0x20000, 0x110000))
    return "".join(chr(rng.randrange(*rng.choice(planes))) for _ in range(rng.randrange(1, 25)))


KINDS: tuple[Callable[[random.Random], str], ...] = (
    _sentence,
    _shouted,
    _spaced,
    _digits,
    _mixed,
    _sentence,
    _marked,
    _code,
    _table,
    _random_unicode,
)


def lines(n: int = 1200, seed: int = 0) -> list[str]:
    """`n` texts, every sentence once before the mixture starts; the same for the same `seed`. Some hold line ends."""
    rng = random.Random(seed)
    plain = [_fill(rng, sentence) for sentences in SENTENCES.values() for sentence in sentences]
    mixture = [KINDS[number % len(KINDS)](rng) for number in range(len(plain), n)]
    return [*plain, *mixture][:n]
