"""Short words of receipts, forms, charts and screens, in every language read.

One row a key; the columns are those of LANGUAGES. Written as headings and buttons have them; makers change the case.
"""

LANGUAGES = ("en", "de", "fr", "es", "it", "pt", "nl", "pl", "cs", "tr", "vi", "ru", "uk", "el", "zh", "ja", "ko")

ROWS = """
total: Total|Summe|Total|Total|Totale|Total|Totaal|Suma|Celkem|Toplam|Tổng cộng|Итого|Разом|Σύνολο|合计|合計|합계
subtotal: Subtotal|Zwischensumme|Sous-total|Subtotal|Subtotale|Subtotal|Subtotaal|Suma częściowa|Mezisoučet|Ara toplam|Tạm tính|Подытог|Проміжний підсумок|Μερικό σύνολο|小计|小計|소계
tax: Tax|MwSt.|TVA|IVA|IVA|IVA|btw|VAT|DPH|KDV|Thuế|НДС|ПДВ|ΦΠΑ|税|消費税|부가세
discount: Discount|Rabatt|Remise|Descuento|Sconto|Desconto|Korting|Rabat|Sleva|İndirim|Giảm giá|Скидка|Знижка|Έκπτωση|折扣|割引|할인
shipping: Shipping|Versand|Livraison|Envío|Spedizione|Envio|Verzending|Wysyłka|Doprava|Kargo|Vận chuyển|Доставка|Доставка|Αποστολή|运费|送料|배송비
tip: Tip|Trinkgeld|Pourboire|Propina|Mancia|Gorjeta|Fooi|Napiwek|Spropitné|Bahşiş|Tiền boa|Чаевые|Чайові|Φιλοδώρημα|小费|チップ|팁
deposit: Deposit|Pfand|Consigne|Depósito|Cauzione|Caução|Statiegeld|Kaucja|Záloha|Depozito|Tiền cọc|Залог|Застава|Εγγύηση|押金|保証金|보증금
amount: Amount|Betrag|Montant|Importe|Importo|Montante|Bedrag|Kwota|Částka|Tutar|Số tiền|Сумма|Сума|Ποσό|金额|金額|금액
price: Price|Preis|Prix|Precio|Prezzo|Preço|Prijs|Cena|Cena|Fiyat|Giá|Цена|Ціна|Τιμή|价格|価格|가격
unit_price: Unit price|Einzelpreis|Prix unitaire|Precio unitario|Prezzo unitario|Preço unitário|Stukprijs|Cena jednostkowa|Jednotková cena|Birim fiyat|Đơn giá|Цена за единицу|Ціна за одиницю|Τιμή μονάδας|单价|単価|단가
quantity: Quantity|Menge|Quantité|Cantidad|Quantità|Quantidade|Aantal|Ilość|Množství|Miktar|Số lượng|Количество|Кількість|Ποσότητα|数量|数量|수량
item: Item|Artikel|Article|Artículo|Articolo|Artigo|Artikel|Pozycja|Položka|Ürün|Mặt hàng|Товар|Товар|Είδος|项目|品目|품목
items: Items|Artikel|Articles|Artículos|Articoli|Artigos|Artikelen|Pozycje|Položky|Ürünler|Các mặt hàng|Товары|Товари|Είδη|商品|商品|상품
product: Product|Produkt|Produit|Producto|Prodotto|Produto|Product|Produkt|Produkt|Ürün adı|Sản phẩm|Продукт|Продукт|Προϊόν|产品|製品|제품
description: Description|Beschreibung|Description|Descripción|Descrizione|Descrição|Omschrijving|Opis|Popis|Açıklama|Mô tả|Описание|Опис|Περιγραφή|说明|説明|설명
number: Number|Nummer|Numéro|Número|Numero|Número|Nummer|Numer|Číslo|Numara|Số|Номер|Номер|Αριθμός|编号|番号|번호
receipt: Receipt|Kassenbon|Ticket de caisse|Recibo|Scontrino|Recibo|Kassabon|Paragon|Účtenka|Fiş|Biên lai|Чек|Чек|Απόδειξη|收据|レシート|영수증
receipt_number: Receipt no.|Bon-Nr.|Ticket n°|Recibo n.º|Scontrino n.|Recibo n.º|Bonnr.|Nr paragonu|Číslo účtenky|Fiş no|Số biên lai|Чек №|Чек №|Αρ. απόδειξης|收据编号|レシート番号|영수증 번호
invoice: Invoice|Rechnung|Facture|Factura|Fattura|Fatura|Factuur|Faktura|Faktura|Fatura|Hóa đơn|Счёт|Рахунок|Τιμολόγιο|发票|請求書|청구서
invoice_number: Invoice no.|Rechnungsnr.|Facture n°|Factura n.º|Fattura n.|Fatura n.º|Factuurnr.|Nr faktury|Číslo faktury|Fatura no|Số hóa đơn|Счёт №|Рахунок №|Αρ. τιμολογίου|发票号码|請求書番号|청구서 번호
order: Order|Bestellung|Commande|Pedido|Ordine|Encomenda|Bestelling|Zamówienie|Objednávka|Sipariş|Đơn hàng|Заказ|Замовлення|Παραγγελία|订单|注文|주문
order_number: Order no.|Bestellnr.|Commande n°|Pedido n.º|Ordine n.|Encomenda n.º|Bestelnr.|Nr zamówienia|Číslo objednávky|Sipariş no|Số đơn hàng|Заказ №|Замовлення №|Αρ. παραγγελίας|订单号|注文番号|주문 번호
customer: Customer|Kunde|Client|Cliente|Cliente|Cliente|Klant|Klient|Zákazník|Müşteri|Khách hàng|Клиент|Клієнт|Πελάτης|客户|お客様|고객
customer_number: Customer no.|Kundennr.|Client n°|Cliente n.º|Cliente n.|Cliente n.º|Klantnr.|Nr klienta|Číslo zákazníka|Müşteri no|Mã khách hàng|Клиент №|Клієнт №|Αρ. πελάτη|客户编号|お客様番号|고객 번호
bill_to: Bill to|Rechnung an|Facturé à|Facturar a|Fatturare a|Faturar a|Factuur aan|Nabywca|Odběratel|Fatura edilen|Người mua|Плательщик|Платник|Χρέωση προς|付款方|請求先|청구 대상
due_date: Due date|Fällig am|Échéance|Vencimiento|Scadenza|Vencimento|Vervaldatum|Termin płatności|Datum splatnosti|Son ödeme tarihi|Hạn thanh toán|Срок оплаты|Термін оплати|Ημερομηνία λήξης|到期日|支払期限|납부 기한
payment: Payment|Zahlung|Paiement|Pago|Pagamento|Pagamento|Betaling|Płatność|Platba|Ödeme|Thanh toán|Оплата|Оплата|Πληρωμή|付款|支払い|결제
paid: Paid|Bezahlt|Payé|Pagado|Pagato|Pago|Betaald|Zapłacono|Zaplaceno|Ödendi|Đã trả|Оплачено|Сплачено|Πληρώθηκε|已付|支払済|지불 완료
balance: Balance|Saldo|Solde|Saldo|Saldo|Saldo|Saldo|Saldo|Zůstatek|Bakiye|Số dư|Баланс|Баланс|Υπόλοιπο|余额|残高|잔액
cash: Cash|Bar|Espèces|Efectivo|Contanti|Dinheiro|Contant|Gotówka|Hotově|Nakit|Tiền mặt|Наличные|Готівка|Μετρητά|现金|現金|현금
card: Card|Karte|Carte|Tarjeta|Carta|Cartão|Pinpas|Karta|Karta|Kart|Thẻ|Карта|Картка|Κάρτα|银行卡|カード|카드
change: Change|Rückgeld|Rendu|Cambio|Resto|Troco|Wisselgeld|Reszta|Vráceno|Para üstü|Tiền thừa|Сдача|Решта|Ρέστα|找零|お釣り|거스름돈
account: Account|Konto|Compte|Cuenta|Conto|Conta|Rekening|Konto|Účet|Hesap|Tài khoản|Счёт в банке|Обліковий запис|Λογαριασμός|账户|口座|계좌
bank: Bank|Bank|Banque|Banco|Banca|Banco|Bank|Bank|Banka|Banka|Ngân hàng|Банк|Банк|Τράπεζα|银行|銀行|은행
thank_you: Thank you|Vielen Dank|Merci|Gracias|Grazie|Obrigado|Dank u wel|Dziękujemy|Děkujeme|Teşekkürler|Cảm ơn|Спасибо|Дякуємо|Ευχαριστούμε|谢谢|ありがとうございました|감사합니다
welcome: Welcome|Willkommen|Bienvenue|Bienvenido|Benvenuto|Bem-vindo|Welkom|Witamy|Vítejte|Hoş geldiniz|Chào mừng|Добро пожаловать|Ласкаво просимо|Καλώς ήρθατε|欢迎|ようこそ|환영합니다
date: Date|Datum|Date|Fecha|Data|Data|Datum|Data|Datum|Tarih|Ngày|Дата|Дата|Ημερομηνία|日期|日付|날짜
time: Time|Uhrzeit|Heure|Hora|Ora|Hora|Tijd|Godzina|Čas|Saat|Giờ|Время|Час|Ώρα|时间|時間|시간
day: Day|Tag|Jour|Día|Giorno|Dia|Dag|Dzień|Den|Gün|Hôm|День|День|Ημέρα|日|日|일
week: Week|Woche|Semaine|Semana|Settimana|Semana|Week|Tydzień|Týden|Hafta|Tuần|Неделя|Тиждень|Εβδομάδα|周|週|주
month: Month|Monat|Mois|Mes|Mese|Mês|Maand|Miesiąc|Měsíc|Ay|Tháng|Месяц|Місяць|Μήνας|月|月|월
year: Year|Jahr|Année|Año|Anno|Ano|Jaar|Rok|Rok|Yıl|Năm|Год|Рік|Έτος|年|年|년
name: Name|Name|Nom complet|Nombre completo|Nome e cognome|Nome|Naam|Imię i nazwisko|Celé jméno|Ad soyad|Họ và tên|Полное имя|Повне ім'я|Ονοματεπώνυμο|姓名|氏名|성명
first_name: First name|Vorname|Prénom|Nombre|Nome|Nome próprio|Voornaam|Imię|Jméno|Ad|Tên|Имя|Ім'я|Όνομα|名|名|이름
last_name: Last name|Nachname|Nom|Apellidos|Cognome|Apelido|Achternaam|Nazwisko|Příjmení|Soyad|Họ|Фамилия|Прізвище|Επώνυμο|姓|姓|성
address: Address|Adresse|Adresse|Dirección|Indirizzo|Morada|Adres|Adres|Adresa|Adres|Địa chỉ|Адрес|Адреса|Διεύθυνση|地址|住所|주소
street: Street|Straße|Rue|Calle|Via|Rua|Straat|Ulica|Ulice|Sokak|Đường|Улица|Вулиця|Οδός|街道|番地|도로명
city: City|Ort|Ville|Ciudad|Città|Cidade|Plaats|Miasto|Město|Şehir|Thành phố|Город|Місто|Πόλη|城市|市区町村|도시
postal_code: Postal code|PLZ|Code postal|Código postal|CAP|Código-postal|Postcode|Kod pocztowy|PSČ|Posta kodu|Mã bưu chính|Индекс|Поштовий індекс|Ταχ. κώδικας|邮编|郵便番号|우편번호
country: Country|Land|Pays|País|Paese|País|Land|Kraj|Země|Ülke|Quốc gia|Страна|Країна|Χώρα|国家|国|국가
phone: Phone|Telefon|Téléphone|Teléfono|Telefono|Telefone|Telefoon|Telefon|Telefon|Telefon|Điện thoại|Телефон|Телефон|Τηλέφωνο|电话|電話番号|전화번호
email: Email|E-Mail|E-mail|Correo electrónico|E-mail|E-mail|E-mail|E-mail|E-mail|E-posta|Thư điện tử|Эл. почта|Ел. пошта|Ηλ. ταχυδρομείο|电子邮件|メールアドレス|이메일
website: Website|Webseite|Site web|Sitio web|Sito web|Página web|Website|Strona internetowa|Webové stránky|Web sitesi|Trang web|Сайт|Вебсайт|Ιστότοπος|网站|ウェブサイト|웹사이트
company: Company|Firma|Société|Empresa|Azienda|Empresa|Bedrijf|Firma|Společnost|Şirket|Công ty|Компания|Компанія|Εταιρεία|公司|会社名|회사
department: Department|Abteilung|Service|Departamento|Reparto|Departamento|Afdeling|Dział|Oddělení|Bölüm|Phòng ban|Отдел|Відділ|Τμήμα|部门|部署|부서
occupation: Occupation|Beruf|Profession|Profesión|Professione|Profissão|Beroep|Zawód|Povolání|Meslek|Nghề nghiệp|Профессия|Професія|Επάγγελμα|职业|職業|직업
date_of_birth: Date of birth|Geburtsdatum|Date de naissance|Fecha de nacimiento|Data di nascita|Data de nascimento|Geboortedatum|Data urodzenia|Datum narození|Doğum tarihi|Ngày sinh|Дата рождения|Дата народження|Ημερομηνία γέννησης|出生日期|生年月日|생년월일
age: Age|Alter|Âge|Edad|Età|Idade|Leeftijd|Wiek|Věk|Yaş|Tuổi|Возраст|Вік|Ηλικία|年龄|年齢|나이
gender: Gender|Geschlecht|Sexe|Sexo|Sesso|Sexo|Geslacht|Płeć|Pohlaví|Cinsiyet|Giới tính|Пол|Стать|Φύλο|性别|性別|성별
nationality: Nationality|Staatsangehörigkeit|Nationalité|Nacionalidad|Nazionalità|Nacionalidade|Nationaliteit|Obywatelstwo|Státní občanství|Uyruk|Quốc tịch|Гражданство|Громадянство|Ιθαγένεια|国籍|国籍|국적
signature: Signature|Unterschrift|Signature|Firma|Firma|Assinatura|Handtekening|Podpis|Podpis|İmza|Chữ ký|Подпись|Підпис|Υπογραφή|签名|署名|서명
form: Form|Formular|Formulaire|Formulario|Modulo|Formulário|Formulier|Formularz|Formulář|Form|Biểu mẫu|Анкета|Анкета|Έντυπο|表格|申込書|양식
page: Page|Seite|Page|Página|Pagina|Página|Pagina|Strona|Strana|Sayfa|Trang|Страница|Сторінка|Σελίδα|页|ページ|쪽
table: Table|Tisch|Table|Mesa|Tavolo|Mesa|Tafel|Stolik|Stůl|Masa|Bàn|Стол|Стіл|Τραπέζι|餐桌|テーブル|테이블
menu: Menu|Speisekarte|Menu|Menú|Menù|Ementa|Menukaart|Menu|Jídelní lístek|Menü|Thực đơn|Меню|Меню|Κατάλογος|菜单|メニュー|메뉴
starters: Starters|Vorspeisen|Entrées|Entrantes|Antipasti|Entradas|Voorgerechten|Przystawki|Předkrmy|Başlangıçlar|Khai vị|Закуски|Закуски|Ορεκτικά|开胃菜|前菜|전채
mains: Main courses|Hauptgerichte|Plats|Platos principales|Secondi|Pratos principais|Hoofdgerechten|Dania główne|Hlavní jídla|Ana yemekler|Món chính|Основные блюда|Основні страви|Κυρίως πιάτα|主菜|主菜|메인 요리
desserts: Desserts|Nachspeisen|Desserts|Postres|Dolci|Sobremesas|Nagerechten|Desery|Dezerty|Tatlılar|Tráng miệng|Десерты|Десерти|Επιδόρπια|甜点|デザート|디저트
drinks: Drinks|Getränke|Boissons|Bebidas|Bevande|Bebidas|Dranken|Napoje|Nápoje|İçecekler|Đồ uống|Напитки|Напої|Ποτά|饮料|飲み物|음료
open: Open|Öffnen|Ouvrir|Abrir|Apri|Abrir|Openen|Otwórz|Otevřít|Aç|Mở|Открыть|Відкрити|Άνοιγμα|打开|開く|열기
close: Close|Schließen|Fermer|Cerrar|Chiudi|Fechar|Sluiten|Zamknij|Zavřít|Kapat|Đóng|Закрыть|Закрити|Κλείσιμο|关闭|閉じる|닫기
save: Save|Speichern|Enregistrer|Guardar|Salva|Guardar|Opslaan|Zapisz|Uložit|Kaydet|Lưu|Сохранить|Зберегти|Αποθήκευση|保存|保存|저장
cancel: Cancel|Abbrechen|Annuler|Cancelar|Annulla|Cancelar|Annuleren|Anuluj|Zrušit|İptal|Hủy|Отмена|Скасувати|Ακύρωση|取消|キャンセル|취소
search: Search|Suchen|Rechercher|Buscar|Cerca|Pesquisar|Zoeken|Szukaj|Hledat|Ara|Tìm kiếm|Поиск|Пошук|Αναζήτηση|搜索|検索|검색
settings: Settings|Einstellungen|Paramètres|Ajustes|Impostazioni|Definições|Instellingen|Ustawienia|Nastavení|Ayarlar|Cài đặt|Настройки|Налаштування|Ρυθμίσεις|设置|設定|설정
help: Help|Hilfe|Aide|Ayuda|Aiuto|Ajuda|Hulp|Pomoc|Nápověda|Yardım|Trợ giúp|Справка|Довідка|Βοήθεια|帮助|ヘルプ|도움말
file: File|Datei|Fichier|Archivo|File|Ficheiro|Bestand|Plik|Soubor|Dosya|Tệp|Файл|Файл|Αρχείο|文件|ファイル|파일
edit: Edit|Bearbeiten|Modifier|Editar|Modifica|Editar|Bewerken|Edycja|Upravit|Düzenle|Sửa|Правка|Редагувати|Επεξεργασία|编辑|編集|편집
view: View|Ansicht|Affichage|Ver|Visualizza|Ver|Beeld|Widok|Zobrazit|Görünüm|Xem|Вид|Вигляд|Προβολή|查看|表示|보기
delete: Delete|Löschen|Supprimer|Eliminar|Elimina|Eliminar|Verwijderen|Usuń|Smazat|Sil|Xóa|Удалить|Видалити|Διαγραφή|删除|削除|삭제
next: Next|Weiter|Suivant|Siguiente|Avanti|Seguinte|Volgende|Dalej|Další|İleri|Tiếp theo|Далее|Далі|Επόμενο|下一步|次へ|다음
back: Back|Zurück|Retour|Atrás|Indietro|Anterior|Terug|Wstecz|Zpět|Geri|Quay lại|Назад|Назад|Πίσω|返回|戻る|뒤로
send: Send|Senden|Envoyer|Enviar|Invia|Enviar|Verzenden|Wyślij|Odeslat|Gönder|Gửi|Отправить|Надіслати|Αποστολή τώρα|发送|送信|보내기
print: Print|Drucken|Imprimer|Imprimir|Stampa|Imprimir|Afdrukken|Drukuj|Tisk|Yazdır|In|Печать|Друк|Εκτύπωση|打印|印刷|인쇄
login: Log in|Anmelden|Se connecter|Iniciar sesión|Accedi|Iniciar sessão|Inloggen|Zaloguj się|Přihlásit se|Giriş yap|Đăng nhập|Войти|Увійти|Σύνδεση|登录|ログイン|로그인
password: Password|Passwort|Mot de passe|Contraseña|Password|Palavra-passe|Wachtwoord|Hasło|Heslo|Parola|Mật khẩu|Пароль|Пароль|Κωδικός|密码|パスワード|비밀번호
user: User|Benutzer|Utilisateur|Usuario|Utente|Utilizador|Gebruiker|Użytkownik|Uživatel|Kullanıcı|Người dùng|Пользователь|Користувач|Χρήστης|用户|ユーザー|사용자
language: Language|Sprache|Langue|Idioma|Lingua|Idioma|Taal|Język|Jazyk|Dil|Ngôn ngữ|Язык|Мова|Γλώσσα|语言|言語|언어
messages: Messages|Nachrichten|Messages|Mensajes|Messaggi|Mensagens|Berichten|Wiadomości|Zprávy|Mesajlar|Tin nhắn|Сообщения|Повідомлення|Μηνύματα|消息|メッセージ|메시지
yes: Yes|Ja|Oui|Sí|Sì|Sim|Ja|Tak|Ano|Evet|Có|Да|Так|Ναι|是|はい|예
no: No|Nein|Non|No|No|Não|Nee|Nie|Ne|Hayır|Không|Нет|Ні|Όχι|否|いいえ|아니요
other: Other|Sonstige|Autres|Otros|Altro|Outros|Overig|Inne|Ostatní|Diğer|Khác|Другое|Інше|Άλλα|其他|その他|기타
average: Average|Durchschnitt|Moyenne|Promedio|Media|Média|Gemiddelde|Średnia|Průměr|Ortalama|Trung bình|Среднее|Середнє|Μέσος όρος|平均|平均|평균
sales: Sales|Umsatz|Ventes|Ventas|Vendite|Vendas|Verkoop|Sprzedaż|Prodej|Satışlar|Doanh số|Продажи|Продажі|Πωλήσεις|销售额|売上|매출
costs: Costs|Kosten|Coûts|Costes|Costi|Custos|Kosten|Koszty|Náklady|Maliyetler|Chi phí|Расходы|Витрати|Κόστος|成本|費用|비용
profit: Profit|Gewinn|Bénéfice|Beneficio|Utile|Lucro|Winst|Zysk|Zisk|Kâr|Lợi nhuận|Прибыль|Прибуток|Κέρδος|利润|利益|이익
share: Share|Anteil|Part|Cuota|Quota|Quota|Aandeel|Udział|Podíl|Pay|Tỷ lệ|Доля|Частка|Μερίδιο|份额|割合|비율
temperature: Temperature|Temperatur|Température|Temperatura|Temperatura|Temperatura|Temperatuur|Temperatura|Teplota|Sıcaklık|Nhiệt độ|Температура|Температура|Θερμοκρασία|温度|気温|온도
population: Population|Bevölkerung|Population|Población|Popolazione|População|Bevolking|Ludność|Obyvatelstvo|Nüfus|Dân số|Население|Населення|Πληθυσμός|人口|人口|인구
weight: Weight|Gewicht|Poids|Peso|Peso|Peso|Gewicht|Waga|Hmotnost|Ağırlık|Trọng lượng|Вес|Вага|Βάρος|重量|重量|무게
length: Length|Länge|Longueur|Longitud|Lunghezza|Comprimento|Lengte|Długość|Délka|Uzunluk|Chiều dài|Длина|Довжина|Μήκος|长度|長さ|길이
north: North|Norden|Nord|Norte|Nord|Norte|Noord|Północ|Sever|Kuzey|Bắc|Север|Північ|Βορράς|北|北|북
south: South|Süden|Sud|Sur|Sud|Sul|Zuid|Południe|Jih|Güney|Nam|Юг|Південь|Νότος|南|南|남
east: East|Osten|Est|Este|Est|Leste|Oost|Wschód|Východ|Doğu|Đông|Восток|Схід|Ανατολή|东|東|동
west: West|Westen|Ouest|Oeste|Ovest|Oeste|West|Zachód|Západ|Batı|Tây|Запад|Захід|Δύση|西|西|서
january: January|Januar|Janvier|Enero|Gennaio|Janeiro|Januari|Styczeń|Leden|Ocak|Tháng 1|Январь|Січень|Ιανουάριος|一月|1月|1월
february: February|Februar|Février|Febrero|Febbraio|Fevereiro|Februari|Luty|Únor|Şubat|Tháng 2|Февраль|Лютий|Φεβρουάριος|二月|2月|2월
march: March|März|Mars|Marzo|Marzo|Março|Maart|Marzec|Březen|Mart|Tháng 3|Март|Березень|Μάρτιος|三月|3月|3월
april: April|April|Avril|Abril|Aprile|Abril|April|Kwiecień|Duben|Nisan|Tháng 4|Апрель|Квітень|Απρίλιος|四月|4月|4월
may: May|Mai|Mai|Mayo|Maggio|Maio|Mei|Maj|Květen|Mayıs|Tháng 5|Май|Травень|Μάιος|五月|5月|5월
june: June|Juni|Juin|Junio|Giugno|Junho|Juni|Czerwiec|Červen|Haziran|Tháng 6|Июнь|Червень|Ιούνιος|六月|6月|6월
july: July|Juli|Juillet|Julio|Luglio|Julho|Juli|Lipiec|Červenec|Temmuz|Tháng 7|Июль|Липень|Ιούλιος|七月|7月|7월
august: August|August|Août|Agosto|Agosto|Agosto|Augustus|Sierpień|Srpen|Ağustos|Tháng 8|Август|Серпень|Αύγουστος|八月|8月|8월
september: September|September|Septembre|Septiembre|Settembre|Setembro|September|Wrzesień|Září|Eylül|Tháng 9|Сентябрь|Вересень|Σεπτέμβριος|九月|9月|9월
october: October|Oktober|Octobre|Octubre|Ottobre|Outubro|Oktober|Październik|Říjen|Ekim|Tháng 10|Октябрь|Жовтень|Οκτώβριος|十月|10月|10월
november: November|November|Novembre|Noviembre|Novembre|Novembro|November|Listopad|Listopad|Kasım|Tháng 11|Ноябрь|Листопад|Νοέμβριος|十一月|11月|11월
december: December|Dezember|Décembre|Diciembre|Dicembre|Dezembro|December|Grudzień|Prosinec|Aralık|Tháng 12|Декабрь|Грудень|Δεκέμβριος|十二月|12月|12월
monday: Monday|Montag|Lundi|Lunes|Lunedì|Segunda-feira|Maandag|Poniedziałek|Pondělí|Pazartesi|Thứ Hai|Понедельник|Понеділок|Δευτέρα|星期一|月曜日|월요일
tuesday: Tuesday|Dienstag|Mardi|Martes|Martedì|Terça-feira|Dinsdag|Wtorek|Úterý|Salı|Thứ Ba|Вторник|Вівторок|Τρίτη|星期二|火曜日|화요일
wednesday: Wednesday|Mittwoch|Mercredi|Miércoles|Mercoledì|Quarta-feira|Woensdag|Środa|Středa|Çarşamba|Thứ Tư|Среда|Середа|Τετάρτη|星期三|水曜日|수요일
thursday: Thursday|Donnerstag|Jeudi|Jueves|Giovedì|Quinta-feira|Donderdag|Czwartek|Čtvrtek|Perşembe|Thứ Năm|Четверг|Четвер|Πέμπτη|星期四|木曜日|목요일
friday: Friday|Freitag|Vendredi|Viernes|Venerdì|Sexta-feira|Vrijdag|Piątek|Pátek|Cuma|Thứ Sáu|Пятница|П'ятниця|Παρασκευή|星期五|金曜日|금요일
saturday: Saturday|Samstag|Samedi|Sábado|Sabato|Sábado|Zaterdag|Sobota|Sobota|Cumartesi|Thứ Bảy|Суббота|Субота|Σάββατο|星期六|土曜日|토요일
sunday: Sunday|Sonntag|Dimanche|Domingo|Domenica|Domingo|Zondag|Niedziela|Neděle|Pazar|Chủ Nhật|Воскресенье|Неділя|Κυριακή|星期日|日曜日|일요일
""".strip().splitlines()  # noqa: E501 - a row is one line

#: language -> key -> word
LABELS: dict[str, dict[str, str]] = {
    language: {row.split(": ")[0]: row.split(": ")[1].split("|")[column] for row in ROWS}
    for column, language in enumerate(LANGUAGES)
}
_KEYS = tuple(LABELS["en"])
MONTHS = _KEYS[_KEYS.index("january") : _KEYS.index("december") + 1]
WEEKDAYS = _KEYS[_KEYS.index("monday") : _KEYS.index("sunday") + 1]
